"""Where a session's drafts come from, as the generation service sees it.

Drafts are hints: a source may be slow, wrong or absent, and the answer stays the same. Every method is called on the
event loop thread and returns at once; `on_nodes` is called on the event loop thread as well.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from specedge.drafting.draft_session import DraftRequest
from specedge.wire.messages import DraftNodes

OnNodes = Callable[[int, DraftNodes], None]
"""Takes the epoch the nodes were numbered in, and the nodes."""


class DraftSession(Protocol):
    """The drafting of one answer."""

    def verdict(self, token_ids: Sequence[int]) -> None:
        """Tells which tokens were committed next; what no longer fits them is given up."""

    def restart(self) -> int:
        """Begins a new epoch and returns it: a new stream counts nodes from 0, so live nodes are sent again."""

    def pause(self) -> None:
        """Stops drafting until `resume`; the session keeps what it has."""

    def resume(self) -> None:
        """Goes on drafting."""

    def close(self) -> None:
        """Ends the session and frees all it holds; further calls do nothing."""


class DraftSource(Protocol):
    """Drafts for all sessions of this process."""

    @property
    def drafter_id(self) -> str:
        """Names the draft model and its settings; verifiers calibrate scores per drafter. Empty when nobody drafts."""

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> DraftSession:
        """Starts drafting after the request's committed tokens (the prompt), in epoch 0.

        Nodes of an epoch are numbered 0, 1, 2, ... in the order they are handed to `on_nodes`.
        """


class NullDraftSource:
    """Drafts nothing: the verifier decodes plainly."""

    drafter_id = ""

    def open(self, request: DraftRequest, on_nodes: OnNodes) -> DraftSession:
        """Starts nothing."""
        return _NullDraftSession()


class _NullDraftSession:
    def verdict(self, token_ids: Sequence[int]) -> None:
        pass

    def restart(self) -> int:
        return 0

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass
