"""What the faults of a run did to its answers: how soon each went on, and what none of them should have seen."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.faults import Event
from processes import Ask
from resilience.load import Answer
from resilience.site import LogRecord

LEFT = re.compile(r"session (?P<answer>\S+)-\d+: left (?P<address>\S+), opening again")
NOTICED_S = 20.0
"""So long after a fault is mended may an answer leave its verifier because of it."""
ON_THE_WAY_S = 1.0
"""So long may a token be on its way from an edge to its user."""
EXCUSED_S = 5.0
"""So long after a blackout requests may fail."""


@dataclass(slots=True)
class Effect:
    """What one fault did.

    Attributes:
        recoveries_s: of each answer that was on the victim and left it, from the fault, or the last token that came
            in spite of it, to the next token.
        longest_pause_s: between two pieces of any answer, during the fault.
    """

    event: Event
    recoveries_s: list[float] = field(default_factory=list)
    longest_pause_s: float = 0.0


def effects_of(events: Iterable[Event], answers: Iterable[Answer], records: Iterable[LogRecord]) -> list[Effect]:
    """What each fault did, by what users saw and edges logged."""
    effects = [Effect(event) for event in events]
    by_id = {answer.id: answer for answer in answers if answer.id}
    counted: set[tuple[int, str]] = set()
    for record in records:
        if (found := LEFT.match(record.message)) is None or (answer := by_id.get(found["answer"])) is None:
            continue
        effect = _cause(effects, found["address"], record.time_s)
        # An answer may try several verifiers until its next token: it has left the victim once.
        if effect is None or (id(effect), answer.id) in counted:
            continue
        counted.add((id(effect), answer.id))
        if (recovery_s := _recovery_s(answer, effect.event.began_s, record.time_s)) is not None:
            effect.recoveries_s.append(recovery_s)
    for effect in effects:
        pauses_s = (_longest_pause_s(answer, effect.event) for answer in by_id.values())
        effect.longest_pause_s = max(pauses_s, default=0.0)
    return effects


def _recovery_s(answer: Answer, began_s: float, left_s: float) -> float | None:
    """The longest pause around the moment at which it left; None if nothing came after it.

    What was on its way to the user at that moment comes in spite of it.
    """
    moments_s = [answer.began_s, *answer.tokens_s]
    around = [
        (after_s - max(began_s, before_s))
        for before_s, after_s in pairwise(moments_s)
        if after_s > left_s and before_s <= left_s + ON_THE_WAY_S
    ]
    return max(around, default=None)


def _cause(effects: Sequence[Effect], address: str, time_s: float) -> Effect | None:
    causes = [
        effect
        for effect in effects
        if effect.event.address == address and effect.event.began_s <= time_s <= effect.event.mended_s + NOTICED_S
    ]
    return max(causes, key=lambda effect: effect.event.began_s, default=None)


def _longest_pause_s(answer: Answer, event: Event) -> float:
    if not answer.tokens_s or answer.tokens_s[0] > event.mended_s or answer.tokens_s[-1] < event.began_s:
        return 0.0
    during = (
        after_s - before_s
        for before_s, after_s in pairwise(answer.tokens_s)
        if after_s >= event.began_s and before_s <= event.mended_s
    )
    return max(during, default=0.0)


def violations(answers: Iterable[Answer], texts: dict[Ask, str], events: Sequence[Event]) -> Iterator[str]:
    """Requests that failed although a verifier lived, and answers that are not the undisturbed ones."""
    dark = [(event.began_s, event.mended_s + EXCUSED_S) for event in events if event.is_blackout]
    for answer in answers:
        name = f"answer {answer.id or '(not begun)'}, seed {answer.ask.seed}"
        if answer.failure is not None:
            is_excused = any(began_s <= answer.ended_s <= ended_s for began_s, ended_s in dark)
            if not (is_excused and answer.is_refused):
                yield f"{name} failed after {answer.ended_s - answer.began_s:.1f} s: {answer.failure}"
            if not texts[answer.ask].startswith(answer.text):
                yield f"{name} had another text before it failed: {_difference(answer.text, texts[answer.ask])}"
        elif answer.text != texts[answer.ask]:
            yield f"{name} has another text: {_difference(answer.text, texts[answer.ask])}"


def _difference(text: str, expected: str) -> str:
    pairs = enumerate(zip(text, expected, strict=False))
    at = next((index for index, (one, other) in pairs if one != other), min(len(text), len(expected)))
    return f"from character {at}: {text[at : at + 40]!r} for {expected[at : at + 40]!r}"
