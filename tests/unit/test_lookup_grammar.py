"""Looked-up drafts keep to the session's grammar, and where it refuses one place another one is read."""

from collections.abc import Callable, Sequence
from functools import partial
from math import exp

from fakes import until
from grammar_support import EOS, compiled, compiler, ids, spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.lookup_source import LookupSession, LookupSource
from specedge.drafting.draft_session import DraftRequest
from specedge.drafting.followed_grammar import FollowedGrammar
from specedge.drafting.lookup import MAX_CHAIN, MIN_PATH_PROBABILITY, SessionLookup
from specedge.drafting.lookup_acceptance import LookupAcceptance
from specedge.grammar.session_grammars import SessionGrammars
from specedge.grammar.state import GrammarState
from specedge.sampling import SamplingParams
from specedge.trie import DraftTrie
from specedge.wire.messages import DraftNodes

LINE = r"([ab]{1,3}[0-9]{1,2},)+"
TEXTS = st.text(alphabet="aaabb0012,,", max_size=40)
LINES = st.from_regex(rf"\A{LINE}\Z").filter(lambda text: len(text) < 60)


def lookup_of(prompt: Sequence[int], state: GrammarState | None, prediction: Sequence[int] = ()) -> SessionLookup:
    grammar = FollowedGrammar()
    grammar.state = state
    return SessionLookup(
        prompt, len(prompt), 400, prediction, LookupAcceptance(), lambda token, _: token == EOS, grammar
    )


def test_a_chain_ends_where_the_grammar_does_not_go_along_and_goes_on_at_another_place() -> None:
    prompt = ids("a; k=9; k=7; k=")
    free = lookup_of(prompt, None).chains()
    assert free[0].token_ids[0] == ids("7")[0], "the last place is the nearest one"
    only_nine = compiled("regex", r"9; (k=9; )+").start()
    chain = lookup_of(prompt, only_nine).chains()[0]
    assert chain.token_ids[: len(ids("9; k=9"))] == ids("9; k=9")
    assert lookup_of(prompt, compiled("regex", r"[a-z]+").start()).chains() == []


def test_a_path_of_drafts_is_a_part_of_what_the_grammar_has_seen() -> None:
    prompt = ids("ab1,ab2,bb1,")
    lookup = lookup_of(prompt, compiled("regex", r"ab2,b+").start())
    chain = lookup.chain_after(ids("ab2,"))
    assert chain is not None and set(chain.token_ids) <= set(ids("bb"))
    assert lookup.chain_after(ids("bb")) is None, "the grammar refuses the path itself"


def test_a_grammar_that_is_ended_or_refuses_a_committed_token_is_given_up() -> None:
    for committed in (ids("ab"), [*ids("a"), EOS]):
        grammar = FollowedGrammar()
        grammar.bind(compiled("regex", "a").start(), committed)
        assert grammar.state is None
        assert grammar.num_admitted((), ids("zzz")) == len(ids("zzz"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=TEXTS, answer=LINES, prediction=TEXTS, step=st.integers(1, 4))
def test_whatever_was_said_every_chain_is_admitted_and_worth_a_draft(
    prompt: str, answer: str, prediction: str, step: int
) -> None:
    checked, grammar = compiled("regex", LINE).start(), FollowedGrammar()
    grammar.state = compiled("regex", LINE).start()
    given_ids, left = [1, *ids(prompt)], [*ids(answer)]
    lookup = SessionLookup(
        given_ids, len(given_ids), 400, ids(prediction), LookupAcceptance(), lambda token, _: token == EOS, grammar
    )
    while left:
        for chain in lookup.chains():
            assert checked.num_admitted((), chain.token_ids) == len(chain.token_ids) <= MAX_CHAIN
            assert exp(sum(chain.log_probs)) >= MIN_PATH_PROBABILITY * 0.999
        now, left = left[:step], left[step:]
        grammar.follow(now)
        assert checked.accept(now) == len(now)
        lookup.commit(now)


class Stream:
    """Takes a session's nodes, and says which of them a grammar of its own refuses."""

    def __init__(self, source: LookupSource, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self.trie = DraftTrie(prompt, max_live_nodes=64)
        self.state = compiled("regex", LINE).start()
        self.session: LookupSession = source.open(DraftRequest("s", prompt, sampling, (EOS,), 64), self.receive)

    def receive(self, epoch: int, nodes: DraftNodes) -> None:
        self.trie.extend(nodes.parents, nodes.token_ids, nodes.scores)

    def commit(self, token_ids: Sequence[int]) -> None:
        assert self.state.accept(token_ids) == len(token_ids)
        self.trie.commit(token_ids)
        self.session.verdict(token_ids)

    @property
    def num_refused(self) -> int:
        paths = [[self.trie.token(node) for node in self.trie.path(number)] for number in self.trie.live_numbers()]
        return sum(not self.state.num_admitted(path[:-1], path[-1:]) for path in paths)


def session_grammars(make: Callable[[], object], eos_ids: Sequence[int]) -> SessionGrammars:
    assert eos_ids == (EOS,)
    return SessionGrammars(make)  # type: ignore[arg-type]


async def test_an_edge_without_a_draft_model_drafts_by_the_grammar_once_it_is_compiled() -> None:
    source = LookupSource(64, partial(session_grammars, compiler))
    prompt = [1, *ids("ab1,abab,ab,b12,ab")]
    sampling = SamplingParams(max_tokens=60, grammar=spec("regex", LINE))
    stream, plain = Stream(source, prompt, sampling), Stream(LookupSource(64), prompt, SamplingParams(max_tokens=60))
    await until(lambda: stream.session._grammar.state is not None)
    num_refused = [0, 0]
    for token in ids("ab1,b12," * 3):
        for index, each in enumerate((stream, plain)):
            each.commit([token])
            num_refused[index] += each.num_refused
    assert num_refused[0] == 0 < num_refused[1]
    assert stream.trie.committed == plain.trie.committed


async def test_a_session_that_was_closed_meanwhile_is_left_alone() -> None:
    source = LookupSource(64, partial(session_grammars, compiler))
    stream = Stream(source, [1, *ids("ab1,ab")], SamplingParams(max_tokens=60, grammar=spec("regex", LINE)))
    stream.session.close()
    num_nodes = stream.trie.num_nodes
    await until(lambda: stream.session._grammar.state is not None)
    assert stream.trie.num_nodes == num_nodes
