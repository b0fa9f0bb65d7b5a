"""What the drafter has done so far, in plain counters; written by its thread, readable from any."""

from collections import Counter
from dataclasses import dataclass, field

from specedge.drafting.lookup_acceptance import Source

MAX_LEAD = 64
"""Tokens beyond the committed text up to which leads are told apart."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One draft step.

    Attributes:
        schedule_s: choosing rows and packing them.
        forward_s: the forward and the ranking, until the children are on the host.
        settle_s: verdicts that came meanwhile, adding the children, handing messages over.
        num_rows: rows of the forward.
        num_sessions: sessions that shared it.
    """

    schedule_s: float
    forward_s: float
    settle_s: float
    num_rows: int
    num_sessions: int


@dataclass(slots=True)
class LookupStats:
    """Nodes that nothing was computed for, by source: added to tries, and committed by a verdict."""

    drafted: Counter[Source] = field(default_factory=Counter)
    confirmed: Counter[Source] = field(default_factory=Counter)


@dataclass(slots=True)
class DrafterStats:
    """Running totals over all sessions. Drafted nodes end up confirmed or wasted, or are still live.

    Attributes:
        num_steps, num_rows, num_session_steps: forwards; their rows; and the sessions in them, each time counted.
        schedule_s, forward_s, settle_s: see StepReport.
        num_computed: committed tokens computed by the draft model (prompts, and what had not been drafted).
        num_drafted: nodes added to tries.
        num_confirmed: nodes that a verdict committed.
        wasted: nodes lost, by reason: "rejected" by a verdict, "trimmed" by the budget, "guess_missed" with a wrong
            expansion head, "released" when a session ended or made room for another.
        num_late_results: expanded nodes whose children came after the verdict that killed them.
        num_verdicts: verdicts of drafting sessions.
        accepted_by_depth: [depth - 1] verdicts that accepted at least that many drafted tokens.
        num_guesses_hit, num_guesses_missed: outcomes of expansion heads.
        leads: [num_tokens] verdicts after which the draft reached so far beyond the committed text; MAX_LEAD counts all
            from there on.
        num_lead_tokens: the sum of these reaches.
        num_rests: times a session, or all, stopped drafting for a while because hardly anything was accepted.
        num_starved: times a session had to give its slots up.
        num_shortages: steps given up for want of memory.
        lookup: nodes that were looked up; they count as drafted too.
    """

    num_steps: int = 0
    num_rows: int = 0
    num_session_steps: int = 0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    settle_s: float = 0.0
    num_computed: int = 0
    num_drafted: int = 0
    num_confirmed: int = 0
    wasted: Counter[str] = field(default_factory=Counter)
    num_late_results: int = 0
    num_verdicts: int = 0
    accepted_by_depth: list[int] = field(default_factory=list)
    num_guesses_hit: int = 0
    num_guesses_missed: int = 0
    leads: list[int] = field(default_factory=lambda: [0] * (MAX_LEAD + 1))
    num_lead_tokens: int = 0
    num_rests: int = 0
    num_starved: int = 0
    num_shortages: int = 0
    lookup: LookupStats = field(default_factory=LookupStats)

    def step(self, report: StepReport) -> None:
        """Counts a draft step."""
        self.num_steps += 1
        self.num_rows += report.num_rows
        self.num_session_steps += report.num_sessions
        self.schedule_s += report.schedule_s
        self.forward_s += report.forward_s
        self.settle_s += report.settle_s

    def lead(self, num_tokens: int) -> None:
        """Counts how far the draft reaches after a verdict."""
        self.leads[min(num_tokens, MAX_LEAD)] += 1
        self.num_lead_tokens += num_tokens

    def verdict(self, num_accepted: int) -> None:
        """Counts a verdict that accepted this many drafted tokens."""
        self.num_verdicts += 1
        self.accepted_by_depth += [0] * (num_accepted - len(self.accepted_by_depth))
        for depth in range(num_accepted):
            self.accepted_by_depth[depth] += 1
