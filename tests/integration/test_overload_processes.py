"""Real processes and far too many requests: whoever is not answered in full is told when to come back."""

import asyncio
from pathlib import Path

from processes import Edge, Verifier, nothing_held, running

from benchmarks.overload.phases import closed_loop, open_loop
from benchmarks.overload.user import Outcome, Question, Users

FLAGS = ("--max-batch-size", "2", "--max-waiting", "2", "--num-kv-blocks", "400")


async def test_too_many_requests_are_refused_in_good_order_and_nothing_is_left_behind(tmp_path: Path) -> None:
    verifier = Verifier(tmp_path, *FLAGS)
    edge = Edge(tmp_path, "edge", verifier, "--num-draft-slots", "20000")
    with running(verifier, edge):
        users = Users(edge.url, Question(num_prompts=2, max_tokens=32, timeout_s=60.0))
        capacity = await closed_loop(users, 2, 1.0)
        overload = await open_loop(users, 80.0, 1.5)
        first, *others = await asyncio.gather(*(users.ask() for _ in range(12)))
        outcomes = [*capacity.outcomes, *overload.outcomes, first, *others]
        for outcome in outcomes:
            check(outcome)
        statuses = {outcome.status for outcome in outcomes}
        assert statuses == {200, 503}
        await nothing_held(verifier, edge)
        assert await verifier.sample("specedge_verifier_queued_tokens") == 0
        assert await verifier.sample(
            "specedge_verifier_tenant_refused_sessions_total", tenant="default", reason="queue"
        )


def check(outcome: Outcome) -> None:
    assert outcome.status in (200, 503), outcome
    assert not outcome.error, outcome
    if outcome.status == 503:
        assert outcome.retry_after_s is not None and 1 <= outcome.retry_after_s <= 90, outcome
