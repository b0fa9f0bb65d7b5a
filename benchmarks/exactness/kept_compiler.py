"""One grammar compiler for all cells: making its process takes longer than answering a cell's requests."""

from typing import cast

from specedge.grammar.compiler import CompiledGrammar, GrammarCompiler
from specedge.grammar.session_grammars import SessionGrammars
from specedge.grammar.spec import GrammarSpec


class KeptCompiler:
    """A compiler that services may close without ending it."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """As the compiler does."""
        return self._compiler.compile(spec)

    def start(self) -> None:
        """As the compiler does."""
        self._compiler.start()

    def close(self) -> None:
        """Leaves the compiler as it is."""

    def for_a_service(self) -> SessionGrammars:
        """Grammars that a service may close."""
        return SessionGrammars(lambda: cast(GrammarCompiler, self))
