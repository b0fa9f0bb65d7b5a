"""Makes a grammar compiler without importing xgrammar before."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from specedge.errors import ModelLoadError
from specedge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from specedge.grammar.compiler import GrammarCompiler


def make_compiler(tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int]) -> "GrammarCompiler":
    """See `GrammarCompiler`; raises ModelLoadError also for a target whose answers cannot end by themselves."""
    from specedge.grammar.compiler import GrammarCompiler

    ends = tuple(eos_ids)
    if not ends:
        raise ModelLoadError("the target names no end-of-sequence token, so that no grammar could end its answers")
    return GrammarCompiler(tokenizer, vocab_size, ends)
