"""Answers replayed: what lookup would bring if the target gave exactly these.

No model takes part: a verification accepts what of the drafts the answer agrees with, and one token more, and takes all
nodes that are live. Words and signs stand for tokens, as in large vocabularies.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, cast

from benchmarks.lookup.structured_texts import CASES as STRUCTURED_CASES
from benchmarks.lookup.texts import CASES, Case, Kind
from edge_agent.lookup_source import LookupSource
from specedge.drafting.draft_session import DraftRequest
from specedge.grammar.loading import make_compiler
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.sampling import SamplingParams
from specedge.tokenizer import load_tokenizer
from specedge.trie import ROOT, DraftTrie
from specedge.wire.messages import DraftNodes

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

_WORD = re.compile(r"\n *| ?[A-Za-z]+| ?\d{1,3}|\s|[^\w\s]|_")
_NUMBERS = count(1)
_MAX_NODES = 64


@cache
def _number(word: str) -> int:
    return next(_NUMBERS)


def token_ids(text: str) -> list[int]:
    """Words with the space before them, numbers of up to three digits, line ends with their indentation, and signs."""
    return [_number(word) for word in _WORD.findall(text)]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of one or more answers."""

    num_tokens: int = 0
    num_verifications: int = 0
    num_nodes: int = 0  # verified, each time counted
    num_accepted: int = 0

    def __add__(self, other: "Replayed") -> "Replayed":
        return Replayed(
            self.num_tokens + other.num_tokens,
            self.num_verifications + other.num_verifications,
            self.num_nodes + other.num_nodes,
            self.num_accepted + other.num_accepted,
        )


def replay(
    source: LookupSource,
    prompt: Sequence[int],
    answer: Sequence[int],
    prediction: Sequence[int] = (),
    grammar: "GrammarState | None" = None,
) -> Replayed:
    """One answer, verified round by round; with a grammar the drafts follow it."""
    trie = DraftTrie(prompt, max_live_nodes=_MAX_NODES)

    def receive(epoch: int, nodes: DraftNodes) -> None:
        trie.extend(nodes.parents, nodes.token_ids, nodes.scores)

    sampling = SamplingParams(max_tokens=len(answer))
    session = source.open(DraftRequest("", prompt, sampling, (), _MAX_NODES, prediction=prediction), receive)
    if grammar is not None:
        session.bind(grammar)
    result, left = Replayed(), list(answer)
    while left:
        num_nodes, node, verdict = trie.num_live, ROOT, []
        for token in left:
            verdict.append(token)
            if token not in trie.children(node):
                break
            node = trie.children(node)[token]
        trie.commit(verdict)
        session.verdict(verdict)
        del left[: len(verdict)]
        result += Replayed(len(verdict), 1, num_nodes, len(verdict) - 1)
    return result


def replay_all(with_predictions: bool) -> dict[Kind, Replayed]:
    """Every case, kind by kind, on an edge that has just been started."""
    results: dict[Kind, Replayed] = {}
    for kind in dict.fromkeys(case.kind for case in CASES):
        source = LookupSource(_MAX_NODES)
        for case in CASES:
            if case.kind == kind and (case.prediction or not with_predictions):
                results[kind] = results.get(kind, Replayed()) + _replay(source, case, with_predictions)
    return results


def replay_structured(is_following: bool) -> dict[str, Replayed]:
    """Every structured case in tokens of the embedded target, each on an edge that has just been started.

    Args:
        is_following: whether the drafts follow the answers' grammars.
    """
    tokenizer = load_tokenizer(resolve_model(EMBEDDED_NAME, "target"))
    compiler = make_compiler(tokenizer, len(tokenizer), (cast(int, tokenizer.eos_token_id),))
    results = {}
    for case in STRUCTURED_CASES:
        prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (case.prompt, case.answer))
        grammar = compiler.compile(case.grammar).start() if is_following else None
        results[case.kind] = replay(LookupSource(_MAX_NODES), prompt, answer, grammar=grammar)
    compiler.close()
    return results


def _replay(source: LookupSource, case: Case, with_prediction: bool) -> Replayed:
    prediction = token_ids(case.prediction) if with_prediction else []
    return replay(source, token_ids(case.prompt), token_ids(case.answer), prediction)
