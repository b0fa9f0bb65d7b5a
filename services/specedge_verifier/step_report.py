"""What a finished step did, as plain counts and seconds."""

from dataclasses import dataclass, field

import numpy as np

from specedge_verifier.acceptance import Walk
from specedge_verifier.scheduler import Schedule


@dataclass(slots=True)
class StepReport:
    """One finished step, for metrics and benchmarks; times in seconds."""

    num_sessions: int
    num_prefill: int  # rows of committed tokens beyond the roots
    num_nodes: int
    num_accepted: int
    num_committed: int
    num_moved: int  # accepted tokens whose KV had to be copied
    schedule_s: float
    forward_s: float  # packing and the forward; on a GPU, launching all of its work
    sample_s: float  # sampling; on a GPU, waiting for it
    settle_s: float
    draft_s: float = 0.0  # drafting beside the target, before the step
    num_kv_tokens: int = 0  # whose keys and values were read, summed over the sessions
    accepted_depths: list[int] = field(default_factory=list)  # accepted length of each tree
    queue_s: list[float] = field(default_factory=list)
    admission_s: list[float] = field(default_factory=list)  # from arrival until now, of sessions in their first step
    nodes_by_depth: list[int] = field(default_factory=list)  # [depth - 1] nodes verified
    num_drafted_next: int = 0  # sessions that go on and have live nodes to go on with
    num_bare_next: int = 0  # sessions that go on and have none

    @property
    def step_s(self) -> float:
        return self.draft_s + self.schedule_s + self.forward_s + self.sample_s + self.settle_s


def report_of(schedule: Schedule, walks: list[Walk | None], num_moved: int) -> StepReport:
    """Count what a step did; its times are the caller's to fill in."""
    done = [(item, path) for item, path in zip(schedule.planned, walks, strict=True) if path is not None]
    num_nodes = len(schedule.trees.rows)
    num_accepted = [len(path.rows) for _, path in done]
    roots = np.array([item.start + item.num_chunk - 1 for item, _ in done], dtype=np.int64)
    depths = schedule.trees.positions - roots.repeat(schedule.trees.sizes)
    return StepReport(
        num_sessions=len(schedule.planned),
        num_prefill=schedule.num_rows - num_nodes - len(done),
        num_nodes=num_nodes,
        num_accepted=sum(num_accepted),
        num_committed=sum([len(path.tokens) for _, path in done]),
        num_moved=num_moved,
        schedule_s=0.0,
        forward_s=0.0,
        sample_s=0.0,
        settle_s=0.0,
        num_kv_tokens=sum([item.start + item.num_rows for item in schedule.planned]),
        accepted_depths=[count for (item, _), count in zip(done, num_accepted, strict=True) if item.num_nodes],
        queue_s=[item.queue_s for item, _ in done],
        nodes_by_depth=np.bincount(depths)[1:].tolist(),
    )
