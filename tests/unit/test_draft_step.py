"""How a step's rows are shared among sessions."""

from specedge.block_pool import BlockPool
from specedge.drafting.draft_session import Demand, DraftingSettings, DraftRequest, SessionDrafting
from specedge.drafting.draft_stats import DrafterStats
from specedge.drafting.draft_step import share_rows
from specedge.drafting.payoff import Payoff, PayoffSettings
from specedge.sampling import SamplingParams


def make_session() -> SessionDrafting:
    request = DraftRequest("s", (1, 2), SamplingParams(), (), 16)
    return SessionDrafting(request, DraftingSettings(), BlockPool(4, 1), DrafterStats(), Payoff(PayoffSettings()))


def demand(session: SessionDrafting, num_uncomputed: int, nodes: list[tuple[float, int]]) -> Demand:
    return Demand(session.tree, num_uncomputed, nodes)


def test_nodes_are_taken_by_probability_across_sessions() -> None:
    first, second, third = make_session(), make_session(), make_session()
    shares = share_rows(
        [
            (first, demand(first, 0, [(-0.1, 7), (-0.4, 3), (-5.0, 9)])),
            (second, demand(second, 0, [(-0.2, 1), (-0.4, 0)])),
            (third, demand(third, 0, [(-0.5, 4)])),
        ],
        max_expansion_rows=4,
        max_catch_up_rows=8,
    )
    assert [(share.session, share.nodes) for share in shares] == [(first, [7, 3]), (second, [1, 0])]
    assert [share.num_rows for share in shares] == [2, 2]


def test_short_texts_catch_up_before_long_ones_and_beside_expansions() -> None:
    long, short, growing = make_session(), make_session(), make_session()
    shares = share_rows(
        [
            (long, demand(long, 100, [])),
            (growing, demand(growing, 0, [(-0.1, 2)])),
            (short, demand(short, 3, [])),
        ],
        max_expansion_rows=4,
        max_catch_up_rows=8,
    )
    assert [(share.session, share.num_committed, share.nodes) for share in shares] == [
        (short, 3, []),
        (long, 5, []),
        (growing, 0, [2]),
    ]
