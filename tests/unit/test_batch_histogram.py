"""A histogram that takes values by the batch shows what one that takes them singly shows."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from specedge_verifier.batch_histogram import BatchHistogram

BOUNDS = (0.5, 1.0, 2.5, 10.0)


VALUES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 9.5, 10.0, 64.0])  # their sums are exact


@given(st.lists(st.lists(VALUES, max_size=6), max_size=6))
def test_it_shows_what_the_librarys_own_shows(batches: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batched = BatchHistogram("wait_seconds", "How long", BOUNDS, ours)
    single = Histogram("wait_seconds", "How long", buckets=BOUNDS, registry=theirs)
    for batch in batches:
        batched.observe(batch)
        for value in batch:
            single.observe(value)
    assert generate_latest(ours) == b"\n".join(
        line for line in generate_latest(theirs).split(b"\n") if b"_created" not in line
    )
