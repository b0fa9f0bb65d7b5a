"""Compiled grammars for one target's vocabulary."""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import xgrammar
from transformers import PreTrainedTokenizerBase

from specedge.errors import InvalidRequest
from specedge.grammar.compile_client import CPU_S, CompileClient
from specedge.grammar.compile_process import compile_grammar
from specedge.grammar.lazy_matcher import LazyVocabulary
from specedge.grammar.matcher import BeginMatcher
from specedge.grammar.schema import enforceable_schema, enforceable_tags
from specedge.grammar.spec import GrammarSpec
from specedge.grammar.state import GrammarState
from specedge.grammar.vocabulary import added_tokens, tokenizer_info

MAX_CACHED: Final = 256
MAX_CACHED_BYTES: Final = 256 * 1024 * 1024
LAZY_BYTES: Final = 4 * 1024 * 1024
"""What a grammar followed lazily comes to hold, at a guess: it grows with the texts that follow it."""


@dataclass(frozen=True, slots=True, eq=False)
class CompiledGrammar:
    """A grammar ready to be followed by any number of sessions.

    Attributes:
        begin: starts a matcher of it.
        num_bytes: what it holds in memory, about.
        vocab_size: the width of the target's logits.
        eos_ids: the target's end-of-sequence tokens; each ends the answer where the grammar may end, and only there.
        special_ids: tokens that are not text.
    """

    begin: BeginMatcher
    num_bytes: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]

    def start(self, stop_token_ids: Iterable[int] = ()) -> GrammarState:
        """A session's state before its first token.

        Args:
            stop_token_ids: further ids that end the answer. Those of special tokens may come where the grammar may end;
                those of text come where the grammar has their text, and end the answer there, by the user's wish.
        """
        ends = {*self.eos_ids, *(self.special_ids.intersection(stop_token_ids))}
        return GrammarState(self.begin(sorted(ends)), self.vocab_size)


class GrammarCompiler:
    """Compiles grammars, each in a process of its own with limits, and keeps the last ones.

    Args:
        tokenizer: the target's.
        vocab_size: the width of its logits.
        stop_ids: its end-of-sequence tokens, at least one.
        cpu_s: processor seconds that compiling one grammar may take.

    Raises:
        ModelLoadError: grammars cannot be used with this tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, stop_ids: Iterable[int], cpu_s: float = CPU_S
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_ids = tuple(sorted(set(stop_ids)))
        added = added_tokens(tokenizer)
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._info = tokenizer_info(tokenizer, vocab_size, self._eos_ids)
        self._lazy = LazyVocabulary(self._info)
        self._client = CompileClient(self._info.serialize_json(), cpu_s)
        self._lock = threading.Lock()
        self._cached: OrderedDict[GrammarSpec, CompiledGrammar | str] = OrderedDict()
        self._cached_bytes = 0

    def start(self) -> None:
        """Start the compiling process ahead of the first grammar, which would wait for it: about 2 s."""
        self._client.start()

    def close(self) -> None:
        """End the compiling process."""
        self._client.close()

    def compile(self, spec: GrammarSpec, param: str | None = None) -> CompiledGrammar:
        """The compiled grammar; blocks its thread, for at most a second on a machine with time to spare.

        Args:
            param: the field the grammar came in, for the error.

        Raises:
            InvalidRequest: the grammar is wrong, too large, too slow, or admits nothing.
            CapacityExceeded: the machine is too busy to compile it now.
        """
        param = param or spec.param
        with self._lock:
            found = self._cached.get(spec)
            if found is not None:
                self._cached.move_to_end(spec)
        if found is None:
            found = self._compiled(spec)
            self._keep(spec, found)
        if isinstance(found, str):
            raise InvalidRequest(found, param=param)
        return found

    def _compiled(self, spec: GrammarSpec) -> CompiledGrammar | str:
        """The grammar, or why it is refused."""
        try:
            spec.validate()
            kind, source = compiler_source(spec)
            begin, num_bytes = self._begin(kind, source, *self._client.compile(kind, source, spec.param))
        except InvalidRequest as error:
            return str(error)
        compiled = CompiledGrammar(begin, num_bytes, self._vocab_size, self._eos_ids, self._special_ids)
        state = compiled.start()
        return compiled if not state.is_stuck else f"{spec.kind} admits nothing: no token may begin an answer"

    def _begin(self, kind: str, source: str, is_lazy: bool, text: str) -> tuple[BeginMatcher, int]:
        if is_lazy:
            return self._lazy.begin(text), LAZY_BYTES
        grammar = (
            xgrammar.CompiledGrammar.deserialize_json(text, self._info)
            if text
            else compile_grammar(self._info, kind, source)
        )
        return (
            lambda end_ids: xgrammar.GrammarMatcher(grammar, override_stop_tokens=list(end_ids)),
            grammar.memory_size_bytes,
        )

    def _keep(self, spec: GrammarSpec, compiled: CompiledGrammar | str) -> None:
        with self._lock:
            replaced = self._cached.pop(spec, None)
            self._cached[spec] = compiled
            self._cached_bytes += _num_bytes(spec, compiled) - (0 if replaced is None else _num_bytes(spec, replaced))
            while len(self._cached) > MAX_CACHED or self._cached_bytes > MAX_CACHED_BYTES:
                self._cached_bytes -= _num_bytes(*self._cached.popitem(last=False))


def compiler_source(spec: GrammarSpec) -> tuple[str, str]:
    """The kind and source that the compiling process is given for a valid spec."""
    if spec.kind == "json_object":
        return "json_schema", '{"type": "object", "additionalProperties": true}'
    if spec.kind == "json_schema":
        return "json_schema", json.dumps(enforceable_schema(spec.parsed(), spec.param), ensure_ascii=False)
    if spec.kind == "structural_tag":
        return "structural_tag", json.dumps(enforceable_tags(spec.parsed(), spec.param), ensure_ascii=False)
    if spec.kind == "choice":
        return "ebnf", "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in spec.parsed())
    return spec.kind, spec.source


def _num_bytes(spec: GrammarSpec, compiled: CompiledGrammar | str) -> int:
    return len(spec.source) + (len(compiled) if isinstance(compiled, str) else compiled.num_bytes)
