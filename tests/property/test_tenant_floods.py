"""Tenants under random floods: every answer is the target's, nothing idles, and nobody gets less than its share."""

from hypothesis import event, given, settings
from hypothesis import strategies as st
from tenant_support import TenantEngine

from specedge_verifier.tenant_account import Tenant

MAX_BATCH_SIZE, MAX_ROWS = 6, 24

TENANTS = st.lists(
    st.builds(
        Tenant,
        name=st.just(""),
        weight=st.sampled_from([0.5, 1.0, 2.0]),
        max_verified_tokens_per_second=st.sampled_from([None, None, 150, 1000]),
        kv_share=st.sampled_from([None, None, 0.3, 0.6]),
    ),
    min_size=2,
    max_size=4,
)
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),  # tenant
        st.integers(0, 12),  # steps until then
        st.integers(1, 30),  # prompt
        st.integers(1, 14),  # answer
        st.integers(-1, 1),  # priority
        st.integers(1, 8),  # sessions at once
    ),
    min_size=1,
    max_size=12,
)


def named(tenants: list[Tenant]) -> list[Tenant]:
    return [
        Tenant(f"t{number}", tenant.weight, None, tenant.max_verified_tokens_per_second, tenant.kv_share)
        for number, tenant in enumerate(tenants)
    ]


@given(
    tenants=TENANTS, arrivals=ARRIVALS, drafted=st.sampled_from([0, 3, 6]), num_blocks=st.sampled_from([40, 60, 400])
)
@settings(max_examples=40, deadline=None)
def test_floods_end_with_every_answer_right(
    tenants: list[Tenant], arrivals: list[tuple[int, ...]], drafted: int, num_blocks: int
) -> None:
    engine = TenantEngine(
        named(tenants),
        num_blocks=num_blocks,
        max_batch_size=MAX_BATCH_SIZE,
        max_rows=MAX_ROWS,
        max_len=44,
        drafted=drafted,
    )
    is_unpaced = all(tenant.max_verified_tokens_per_second is None for tenant in tenants)
    for number, (tenant, wait, num_prompt, num_tokens, priority, times) in enumerate(arrivals):
        for _ in range(wait):
            before, step = engine.scheduler.num_preemptions, engine.step()
            if step is not None and not drafted and is_unpaced and engine.scheduler.num_preemptions == before:
                assert sum(step.rows.values()) == min(MAX_ROWS, step.wanted), "no row is left that anyone wants"
        for time in range(times):
            text = [(number * 3 + time + index * index) % 5 for index in range(num_prompt)]
            engine.open(f"t{tenant % len(tenants)}", text, num_tokens, priority)
    engine.finish()
    event(f"preemptions: {min(engine.scheduler.num_preemptions, 3)}")


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=2, max_size=3),
    floods=st.lists(st.integers(12, 40), min_size=3, max_size=3),
    lengths=st.lists(st.integers(2, 25), min_size=3, max_size=3),
    drafted=st.sampled_from([0, 4]),
)
@settings(max_examples=20, deadline=None)
def test_of_tenants_that_all_want_more_none_has_more_places_or_rows_than_its_share(
    weights: list[float], floods: list[int], lengths: list[int], drafted: int
) -> None:
    tenants = [Tenant(f"t{number}", weight) for number, weight in enumerate(weights)]
    engine = TenantEngine(tenants, max_batch_size=MAX_BATCH_SIZE, max_rows=MAX_ROWS, max_len=100, drafted=drafted)
    for number, (tenant, flood, length) in enumerate(zip(tenants, floods, lengths, strict=False)):
        for time in range(flood):
            engine.open(tenant.name, [(number + time + index) % 5 for index in range(length)], 60)
    for _ in range(40):
        step = engine.step()
        assert step is not None
        if any(not engine.accounts[tenant.name].num_waiting for tenant in tenants):
            break
        assert sum(step.running.values()) == MAX_BATCH_SIZE, "no place is left empty"
        for one in tenants:
            for other in tenants:
                lead = (step.running[one.name] - 1) / one.weight - (step.running[other.name] + 1) / other.weight
                assert lead < 1e-9, f"{one.name} has a place too many, {other.name} one too few"
