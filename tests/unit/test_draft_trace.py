"""What a traced round says about the draft trie and about time."""

from itertools import count

from edge_agent.draft_trace import MAX_SHOWN_NODES, DraftTracer, RoundTrace, TrieTrace
from specedge.wire.messages import DraftNodes, Verdict

PROMPT = (10, 11)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tracer(max_live_nodes: int = 64) -> tuple[DraftTracer, Clock]:
    clock = Clock()
    return DraftTracer(PROMPT, max_live_nodes, clock), clock


def test_a_round_shows_what_was_drafted_and_which_way_the_target_went() -> None:
    traced, _ = tracer()
    # After 11: 20 (then 30, 31) and 21; numbered 0 to 3, and the last is the most improbable.
    traced.sent(DraftNodes([20, 30, 21, 31], [~1, 0, ~1, 0], [-0.1, -0.2, -1.0, -3.0]))
    trace = traced.verdict(Verdict(2, (20, 31), num_nodes_verified=2, num_accepted=1), None)
    assert trace.trie == TrieTrace(
        num_live=4, parents=(-1, 0, -1, 0), token_ids=(20, 30, 21, 31), accepted=(0,), bonus=3
    )


def test_the_next_round_begins_where_the_last_one_ended() -> None:
    traced, _ = tracer()
    traced.sent(DraftNodes([20, 30, 40], [~1, 0, 1], [-0.1, -0.1, -0.1]))
    traced.verdict(Verdict(2, (20, 30), num_nodes_verified=1, num_accepted=1), None)
    traced.sent(DraftNodes([50, 60], [2, ~1], [-0.1, -0.1]))  # the second comes too late
    trace = traced.verdict(Verdict(4, (40, 51), num_nodes_verified=2, num_accepted=1), None)
    assert trace.trie == TrieTrace(num_live=2, parents=(-1, 0), token_ids=(40, 50), accepted=(0,), bonus=None)
    assert traced.verdict(Verdict(6, (1,)), None).trie is None


def test_an_accepted_node_is_shown_however_improbable_it_was() -> None:
    traced, _ = tracer()
    tokens = range(100, 100 + MAX_SHOWN_NODES + 1)
    traced.sent(DraftNodes(list(tokens), [~1] * len(tokens), [-0.1 * n for n in range(len(tokens))]))
    trie = traced.verdict(Verdict(2, (tokens[-1], 7), num_nodes_verified=1, num_accepted=1), None).trie
    assert trie is not None
    assert (trie.num_live, len(trie.parents)) == (MAX_SHOWN_NODES + 1, MAX_SHOWN_NODES + 1)
    assert [trie.token_ids[index] for index in trie.accepted] == [tokens[-1]]

    traced.sent(DraftNodes(list(tokens), [~3] * len(tokens), [-0.1] * len(tokens)))
    trie = traced.verdict(Verdict(4, (tokens[0],)), None).trie
    assert trie is not None and len(trie.parents) == MAX_SHOWN_NODES


def test_no_more_nodes_are_kept_than_the_verifier_keeps() -> None:
    traced, _ = tracer(max_live_nodes=2)
    traced.sent(DraftNodes([20, 21, 22], [~1] * 3, [-0.1, -0.2, -0.3]))
    trie = traced.verdict(Verdict(2, (22,)), None).trie
    assert trie is not None and trie.token_ids == (20, 21)


def test_what_was_looked_up_is_told_apart() -> None:
    traced, _ = tracer()
    traced.sent(DraftNodes([20, 30, 30], [~1, 0, 0], [-0.1, -0.2, -0.2], looked_up=[False, True, False]))
    traced.sent(DraftNodes([40], [1], [-0.1]))
    trie = traced.verdict(Verdict(2, (20, 30, 40), num_nodes_verified=2, num_accepted=2), None).trie
    assert trie == TrieTrace(3, (-1, 0, 1), (20, 30, 40), accepted=(0, 1), bonus=2, looked_up=(1,))
    traced.restart()
    traced.sent(DraftNodes([50, 60], [~4, 0], [-0.1, -0.1]))
    trie = traced.verdict(Verdict(5, (1,)), None).trie
    assert trie is not None and trie.looked_up == ()


def test_a_new_stream_counts_nodes_from_0() -> None:
    traced, _ = tracer()
    traced.sent(DraftNodes([20, 30], [~1, 0], [-0.1, -0.1]))
    traced.verdict(Verdict(2, (20,)), None)
    traced.restart()
    traced.sent(DraftNodes([31, 41], [~2, 0], [-0.1, -0.1]))
    trie = traced.verdict(Verdict(3, (31, 41), num_nodes_verified=1, num_accepted=1), None).trie
    assert trie == TrieTrace(num_live=2, parents=(-1, 0), token_ids=(31, 41), accepted=(0,), bonus=1)


def test_times_count_from_the_verdict_before() -> None:
    traced, clock = tracer()
    clock.now += 2
    assert traced.verdict(Verdict(2, (20,)), None) == RoundTrace(None, 2.0, None, None)
    numbers = count(30)
    for pause in (0.5, 1):
        clock.now += pause
        traced.sent(DraftNodes([next(numbers)], [~2], [-0.1]))
    trace = traced.verdict(Verdict(3, (5,)), 0.014)
    assert (trace.gap_s, trace.draft_s, trace.network_s) == (1.5, 0.5, 0.014)
    assert traced.verdict(Verdict(4, (5,)), 0.014).draft_s is None
