"""Settings that are allowed, and yet hardly what anybody wants."""

from collections.abc import Sequence

from edge_agent.settings import EdgeSettings
from specedge.drafting.settings import DrafterSettings
from specedge.errors import ModelLoadError
from specedge.model.engines import foresee
from specedge.tls.rules import is_loopback, is_loopback_host
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.models import folder_of, is_demo
from specedge_verifier.settings import VerifierSettings

_SMALL_SHARE = 0.5


def advise_verifier(settings: VerifierSettings) -> Sequence[Finding]:
    """Of a verifier."""
    findings = _advise_models(settings) if settings.system == "server-only" else []
    findings += _advise_demo(settings)
    if settings.allow_plaintext and settings.tls_certificate_file is None and not is_loopback_host(settings.host):
        findings.append(_plaintext(f"edges at {settings.host}", "tls_certificate_file and tls_key_file"))
    findings += _advise_metrics(settings.metrics_host, settings.metrics_port)
    if settings.max_num_batched_tokens < settings.max_batch_size + settings.max_tree_nodes:
        found = (
            f"max_num_batched_tokens {settings.max_num_batched_tokens} holds no tree of max_tree_nodes "
            f"{settings.max_tree_nodes} beside max_batch_size {settings.max_batch_size} sessions"
        )
        findings.append(Finding("step size", "warn", found, "raise max_num_batched_tokens"))
    return findings or [_nothing()]


def advise_edge(settings: EdgeSettings, facts: Facts) -> Sequence[Finding]:
    """Of an edge."""
    findings = [*_advise_models(settings), *_advise_demo(settings), *_advise_growth(settings, facts)]
    if settings.draft_model is None and not settings.looks_up:
        change = "set draft_model, or lookup to auto: this edge only passes tokens on"
        findings.append(Finding("drafting", "warn", "no draft model, and nothing is looked up", change))
    if settings.allow_plaintext and settings.verifier_ca_file is None and not is_loopback(settings.verifier_address):
        findings.append(_plaintext(f"the verifier at {settings.verifier_address}", "verifier_ca_file"))
    if settings.allow_plaintext_http and settings.tls_certificate_file is None and not is_loopback_host(settings.host):
        findings.append(_plaintext(f"users at {settings.host}", "tls_certificate_file and tls_key_file"))
    if settings.public_metrics and not is_loopback_host(settings.host):
        found = "everybody who reaches the API may read /metrics"
        findings.append(Finding("metrics", "warn", found, "set public_metrics to false and scrape metrics_port"))
    findings += _advise_metrics(settings.metrics_host, settings.metrics_port)
    return findings or [_nothing()]


def _nothing() -> Finding:
    return Finding("settings", "ok", "nothing to remark")


def _plaintext(who: str, remedy: str) -> Finding:
    found = f"plain text with {who} goes beyond this machine"
    return Finding("plain text", "warn", found, f"set {remedy}, unless nobody else can listen (a VPN, one host)")


def _advise_metrics(host: str, port: int | None) -> list[Finding]:
    if port is None or is_loopback_host(host):
        return []
    found = f"/metrics is plain HTTP on {host}:{port}, for everybody who gets there"
    return [Finding("metrics", "warn", found, "let only Prometheus through to this port")]


def _advise_demo(settings: DrafterSettings) -> list[Finding]:
    if not is_demo(settings):
        return []
    found = "the embedded demo models are in use: they tell short stories and know nothing"
    return [Finding("demo model", "warn", found, "set target_model and draft_model to models of your choice")]


def _advise_models(settings: DrafterSettings) -> list[Finding]:
    """Whether the draft model is small beside the target."""
    if settings.draft_model is None:
        return []
    try:
        folders = folder_of(settings.target_model, "target"), folder_of(settings.draft_model, "draft")
        sizes = [
            foresee("auto", folder, "cpu", settings.dtype, "auto").weight_bytes
            for folder in folders
            if folder is not None
        ]
    except ModelLoadError:
        return []  # the files have findings of their own; of the target an edge needs the tokenizer only
    return judge_sizes(*sizes) if len(sizes) == 2 else []


def judge_sizes(target_bytes: int, draft_bytes: int) -> list[Finding]:
    """A draft model that costs as much as the target cannot get ahead of it."""
    share = draft_bytes / target_bytes
    if share <= _SMALL_SHARE:
        return []
    found = f"the draft model has {share:.0%} of the target's size"
    change = "take a draft model of a tenth or less of the target's size"
    return [Finding("draft model size", "warn", found, change, {"share": share})]


def _advise_growth(settings: EdgeSettings, facts: Facts) -> list[Finding]:
    """Whether trees are larger than what can be drafted between two verdicts, or than the verifier keeps."""
    findings: list[Finding] = []
    if facts.info is not None and settings.max_budget > facts.info.max_live_nodes:
        found = f"max_budget {settings.max_budget} is above the verifier's max_live_nodes {facts.info.max_live_nodes}"
        change = f"lower max_budget to {facts.info.max_live_nodes}"
        findings.append(Finding("tree size", "warn", found, change))
    if facts.draft_step_s is not None and facts.round_trip_s is not None and facts.verifier_step_s is not None:
        cycle_s = facts.round_trip_s + facts.verifier_step_s
        findings += judge_budget(
            settings.max_budget, settings.max_n_beams, settings.max_branch_width, facts.draft_step_s, cycle_s
        )
    return findings


def judge_budget(
    max_budget: int, max_n_beams: int, max_branch_width: int, draft_step_s: float, cycle_s: float
) -> list[Finding]:
    """Whether a tree could become as large as allowed.

    Args:
        cycle_s: from sending nodes to the verdict on them.
    """
    num_steps = max(1, int(cycle_s / draft_step_s))
    most = num_steps * max_n_beams * max_branch_width
    if most >= max_budget:
        return []
    cycle = f"{num_steps} draft steps in the {1e3 * cycle_s:.0f} ms to a verdict"
    found = f"max_budget is {max_budget}, and {cycle} grow {most} nodes"
    return [Finding("tree size", "warn", found, f"lower max_budget to {most}", {"num_nodes_grown": most})]
