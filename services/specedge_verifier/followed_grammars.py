"""What the gRPC service needs to have a session follow a grammar."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from specedge.grammar.spec import GrammarSpec
from specedge.sampling import SamplingParams


class Grammars(Protocol):
    """`SessionGrammars`, or what stands for it where the engine is in another process."""

    def begin(self, spec: GrammarSpec, sampling: SamplingParams, committed_ids: Sequence[int] = ()) -> "Future[Any]":
        """The GrammarState, or None, that `Engine.open` is to be given. The future raises what refuses the session."""
        ...
