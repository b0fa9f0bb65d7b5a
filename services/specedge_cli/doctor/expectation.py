"""What speed-up to expect: step times and round trip of this pair, combined, and a session that was tried."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from edge_agent.drafter import Drafter
from edge_agent.settings import EdgeSettings
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.errors import ModelLoadError
from specedge.wire.messages import DRAFT_TRIES
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.draft_speed import LoadedDraft, load_draft, median_step_s, source_of
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.models import folder_of
from specedge_cli.doctor.session_model import Pace, Times, greatest_lead, streamed_pace
from specedge_cli.doctor.trial import NUM_DRAFTED_TOKENS, try_session
from specedge_cli.doctor.verifier_link import VerifierLink

AGREEMENT: Final = 0.85
"""Assumed: positions at which the drafted tree has the target's token. Draft models whose first choice is the target's
token at 75 to 86 % of the positions come to that."""
_TRIAL_S: Final = 15.0


@dataclass(slots=True)
class DraftHere:
    """The draft model once it is loaded, from one check to the next."""

    loaded: LoadedDraft | None = field(default=None)


def check_draft_step(settings: EdgeSettings, facts: Facts, here: DraftHere) -> Sequence[Finding]:
    """Load the draft model and time its steps."""
    name = "draft step"
    if settings.draft_model is None:
        looked_up = "drafts are looked up at no cost" if settings.looks_up else "nothing drafts here"
        return [Finding(name, "skipped", f"draft_model is none: {looked_up}")]
    if folder_of(settings.draft_model, "draft") is None or not facts.prompt_ids:
        return [Finding(name, "skipped", "the files of one of the models are not here")]
    try:
        here.loaded = load_draft(settings)
    except ModelLoadError as error:
        if not facts.runs_already:
            raise
        return [Finding(name, "skipped", f"beside the edge that runs already it cannot be loaded again: {error}")]
    facts.draft_step_s = median_step_s(here.loaded, tuple(facts.prompt_ids))
    found = f"{1e3 * facts.draft_step_s:.1f} ms ({here.loaded.execution})"
    return [Finding(name, "ok", found, values={"draft_step_ms": 1e3 * facts.draft_step_s})]


def check_plain_session(link: VerifierLink, facts: Facts) -> Sequence[Finding]:
    """A short answer without drafts: what a token costs, and how long the verifier's steps take."""
    name = "session without drafts"
    if facts.info is None or facts.fingerprint != facts.info.tokenizer_fingerprint:
        return [Finding(name, "skipped", "there is no verifier with this tokenizer")]
    fingerprint, prompt_ids = facts.fingerprint, facts.prompt_ids
    trial = link.ask(lambda client: try_session(client, fingerprint, prompt_ids, None), _TRIAL_S)
    facts.verifier_step_s, facts.plain_s = trial.step_s, trial.seconds_per_token
    found = (
        f"first token after {1e3 * trial.first_token_s:.0f} ms, then {1e3 * trial.seconds_per_token:.1f} ms each; the "
        f"verifier's step takes {1e3 * trial.step_s:.1f} ms, after waiting {1e3 * trial.queue_s:.1f} ms"
    )
    values = {
        "first_token_ms": 1e3 * trial.first_token_s,
        "ms_per_token": 1e3 * trial.seconds_per_token,
        "verifier_step_ms": 1e3 * trial.step_s,
        "verifier_queue_ms": 1e3 * trial.queue_s,
    }
    if trial.queue_s > trial.step_s:
        change = "the verifier is busy just now: more than a step goes by before it takes a session along"
        return [Finding(name, "warn", found, change, values)]
    return [Finding(name, "ok", found, values=values)]


def check_drafted_session(
    link: VerifierLink, settings: EdgeSettings, facts: Facts, here: DraftHere
) -> Sequence[Finding]:
    """The same with drafts: what they bring on one text."""
    name = "session with drafts"
    source = source_of(settings, here.loaded)
    if facts.plain_s is None or facts.info is None or source is None or DRAFT_TRIES not in facts.info.capabilities:
        return [Finding(name, "skipped", "there is no verifier that takes drafts, or nothing to draft with")]
    fingerprint, prompt_ids = facts.info.tokenizer_fingerprint, facts.prompt_ids
    if isinstance(source, Drafter):
        source.start()
    try:
        trial = link.ask(lambda client: try_session(client, fingerprint, prompt_ids, source), _TRIAL_S)
    finally:
        if isinstance(source, Drafter):
            source.stop()
    facts.tree_step_s = trial.step_s
    return [judge_drafted(facts.plain_s, trial.seconds_per_token, trial.tokens_per_verification)]


def judge_drafted(plain_s: float, drafted_s: float, tokens_per_verification: float) -> Finding:
    """Whether drafts helped on the one text that was tried."""
    found = (
        f"{tokens_per_verification:.2f} tokens per verification, {1e3 * drafted_s:.1f} ms per token with and "
        f"{1e3 * plain_s:.1f} ms without: {plain_s / drafted_s:.2f} times as fast, on one story of "
        f"{NUM_DRAFTED_TOKENS} tokens"
    )
    values = {
        "tokens_per_verification": tokens_per_verification,
        "ms_per_token_with": 1e3 * drafted_s,
        "ms_per_token_without": 1e3 * plain_s,
    }
    if drafted_s > plain_s:
        change = "drafts cost more than they brought on this text: compare draft step, round trip and verifier step"
        return Finding("session with drafts", "warn", found, change, values)
    return Finding("session with drafts", "ok", found, values=values)


def check_expectation(settings: EdgeSettings, facts: Facts) -> Sequence[Finding]:
    """What the times found above allow."""
    if facts.verifier_step_s is None or facts.round_trip_s is None:
        return [Finding("speed-up", "skipped", "the verifier's step time or the round trip is not known")]
    if facts.draft_step_s is None:
        return [Finding("speed-up", "skipped", "without a draft model it depends on how much a text repeats itself")]
    if settings.proactive.type != "streamed":
        found = f"there is no estimate for proactive.type {settings.proactive.type}; see the session that was tried"
        return [Finding("speed-up", "skipped", found)]
    tree_step_s = max(facts.tree_step_s or 0.0, facts.verifier_step_s)
    times = Times(tree_step_s, facts.draft_step_s, facts.round_trip_s)
    return [judge_expectation(facts.verifier_step_s, times, expected_pace(times, settings.growth))]


def expected_pace(times: Times, growth: GrowthSettings, agreement: float = AGREEMENT) -> Pace:
    """The pace of one session alone."""
    least = DraftingSettings().min_path_probability
    return streamed_pace(times, agreement, greatest_lead(agreement, growth.max_budget, growth.decay, least))


def judge_expectation(plain_step_s: float, times: Times, pace: Pace, agreement: float = AGREEMENT) -> Finding:
    """Whether drafting should pay here.

    Args:
        plain_step_s: a step of the verifier without drafts.
        times: with them.
    """
    with_ms, without_ms = 1e3 * pace.seconds_per_token, 1e3 * plain_step_s
    speed_up = without_ms / with_ms
    found = (
        f"about {pace.tokens_per_verification:.1f} tokens per verification, {with_ms:.1f} ms per token with and "
        f"{without_ms:.1f} ms without: {speed_up:.2f} times as fast, if {agreement:.0%} of the target's tokens are in "
        f"the drafted trees (verifier step {without_ms:.1f} ms, with trees {1e3 * times.verifier_step_s:.1f} ms, draft "
        f"step {1e3 * times.draft_step_s:.1f} ms, round trip {1e3 * times.round_trip_s:.1f} ms; one session alone)"
    )
    values = {
        "tokens_per_verification": pace.tokens_per_verification,
        "ms_per_token_with": with_ms,
        "ms_per_token_without": without_ms,
        "assumed_agreement": agreement,
    }
    if speed_up >= 1.1:
        return Finding("speed-up", "ok", found, values=values)
    if times.draft_step_s > times.verifier_step_s:
        change = (
            "take a smaller draft model, a faster edge, or draft_quantization: its step is longer than the verifier's"
        )
    elif times.round_trip_s > 2 * times.verifier_step_s:
        change = "choose a nearer verifier: a round trip lasts longer than two of its steps"
    else:
        change = "a larger target model gains more: this one's steps are too short for drafts to get ahead of them"
    return Finding("speed-up", "warn", found, change, values)
