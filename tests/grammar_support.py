"""The demo target's grammar compiler, one for the whole run: its process takes seconds to start."""

import atexit
import functools
import json

import numpy as np
from numpy.typing import NDArray

from specedge.grammar.compiler import CompiledGrammar, GrammarCompiler
from specedge.grammar.spec import GrammarSpec
from specedge.model.embedded import resolve_model
from specedge.tokenizer import load_tokenizer

EOS = 2
VOCAB_SIZE = 4096


@functools.cache
def tokenizer():
    return load_tokenizer(resolve_model("demo", "target"))


@functools.cache
def compiler() -> GrammarCompiler:
    made = GrammarCompiler(tokenizer(), VOCAB_SIZE, [EOS])
    atexit.register(made.close)
    return made


def compiled(kind: str, source: object = "") -> CompiledGrammar:
    return compiler().compile(spec(kind, source))


def spec(kind: str, source: object = "") -> GrammarSpec:
    return GrammarSpec(kind, source if isinstance(source, str) else json.dumps(source))


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


def allowed(mask: NDArray[np.int32]) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())
