"""Drafting without threads, tensors or network: sessions in, draft nodes out, one step at a time.

The draft model is behind `DraftModel`, time behind the caller: the edge runs this on its drafter's thread, a verifier
that drafts for itself between its own steps, a simulator in virtual time. A step is `schedule`, the model's `children`,
`settle`; verdicts may come at any moment between them. A step for which memory did not suffice ends with `abandon`.
"""

import logging
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from specedge.block_pool import BlockPool
from specedge.drafting.draft_session import DraftingSettings, DraftRequest, SessionDrafting
from specedge.drafting.draft_stats import DrafterStats
from specedge.drafting.draft_step import DraftStep, Share, share_rows
from specedge.drafting.growth import Candidates
from specedge.drafting.lookup_acceptance import LookupAcceptance
from specedge.drafting.payoff import Payoff
from specedge.drafting.rounds import RoundDrafting
from specedge.row_cap import RowCap
from specedge.wire.messages import DraftNodes

if TYPE_CHECKING:
    from specedge.grammar.state import GrammarState

logger = logging.getLogger(__name__)

_MAX_EXPANSION_ROWS = 128
_MAX_CATCH_UP_ROWS = 128

Key = TypeVar("Key", bound=Hashable)
"""What the caller knows a session by."""


class DraftModel(Protocol):
    """What a draft step needs of the draft model. Want of memory is MemoryError."""

    def children(self, step: DraftStep) -> list[Candidates]:
        """Compute a step's rows; returns the best children of each wanted row, in order."""

    def observe(self, evidence: Iterable[tuple[Candidates, int]]) -> None:
        """Learn from tokens that were committed after expanded nodes."""


class DraftCore(Generic[Key]):
    """Drafts for all sessions of one draft model.

    Args:
        model: the draft model.
        settings: how sessions draft.
        num_slots: KV slots of the draft model, in tokens.
    """

    def __init__(self, model: DraftModel, settings: DraftingSettings, num_slots: int) -> None:
        self.stats = DrafterStats()
        self.pool = BlockPool(num_slots, block_size=1)
        self._row_cap = RowCap(_MAX_EXPANSION_ROWS)
        self._model = model
        self._settings = settings
        self._payoff = Payoff(settings.overall_payoff)
        self._acceptance = LookupAcceptance() if settings.looks_up else None
        self._sessions: dict[Key, SessionDrafting] = {}  # in order of opening
        self._awake: list[SessionDrafting] | None = []  # those not paused; None: to be listed anew
        self._has_starved = False

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    @property
    def keys(self) -> list[Key]:
        """The sessions, in order of opening."""
        return list(self._sessions)

    def num_looked_up(self, key: Key) -> int:
        """Live nodes of a session that were looked up."""
        return self._sessions[key].num_looked_up

    def open(self, key: Key, request: DraftRequest) -> None:
        """Starts drafting after the request's committed tokens."""
        if self._settings.mode == "streamed":
            session = SessionDrafting(request, self._settings, self.pool, self.stats, self._payoff, self._acceptance)
        else:
            session = RoundDrafting(request, self._settings, self.pool, self.stats, self._payoff)
        self._sessions[key] = session
        self._awake = None

    def bind(self, key: Key, grammar: "GrammarState", num_followed: int) -> None:
        """See `SessionDrafting.bind`; a session that has ended is left alone."""
        if key in self._sessions:
            self._sessions[key].bind(grammar, num_followed)

    def verdict(self, key: Key, token_ids: Sequence[int]) -> None:
        """Tokens were committed next."""
        self._model.observe(self._sessions[key].verdict(token_ids))

    def restart(self, key: Key, epoch: int) -> None:
        """What is live is sent again, numbered from 0."""
        self._sessions[key].restart(epoch)

    def pause(self, key: Key, is_paused: bool) -> None:
        """A paused session keeps what it has and computes nothing."""
        self._sessions[key].is_paused = is_paused
        self._awake = None

    def close(self, key: Key) -> None:
        """Ends a session and frees its slots."""
        self._sessions.pop(key).release()
        self._awake = None
        if not self._sessions:
            self._payoff.reset()

    def schedule(self) -> DraftStep | None:
        """Decides a step and takes its slots; None when nothing is worth a forward until there is news."""
        self._revive()
        demands = [(session, demand) for session in self._list_awake() if (demand := session.demand()) is not None]
        num_rows = self._row_cap.rows
        only_text = self._row_cap.is_short and any(demand.num_uncomputed for _, demand in demands)
        shares = share_rows(
            demands,
            max_expansion_rows=0 if only_text else num_rows,
            max_catch_up_rows=min(num_rows, _MAX_CATCH_UP_ROWS),
        )
        shares = self._make_room(shares)
        if not shares:
            return None
        self.stats.num_computed += sum(share.num_committed for share in shares)
        return DraftStep([(share.session, share.tree, share.take_rows()) for share in shares])

    def settle(self, step: DraftStep, children: Sequence[Candidates]) -> None:
        """Adds a step's children to the tries; results for what a verdict has overtaken are dropped."""
        self._row_cap.stepped()
        remaining = iter(children)
        for session, tree, rows in step.parts:
            session.settle(tree, list(zip(rows.references, remaining, strict=False)))

    def abandon(self, step: DraftStep) -> bool:
        """Memory ran out in a step: its sessions begin again from their text, and later steps are smaller.

        Returns:
            Whether they can be; False: it had a single row, and its session gets no more drafts.
        """
        self.stats.num_shortages += 1
        can_shrink = self._row_cap.shrink(step.num_rows, step.num_rows)
        for session, _, _ in step.parts:
            session.release()
            session.is_given_up = not can_shrink
        return can_shrink

    def take_messages(self) -> list[tuple[Key, int, DraftNodes]]:
        """What is to be sent now, as (session, epoch, nodes); it counts as sent."""
        return [
            (key, session.epoch, nodes)
            for key, session in self._sessions.items()
            if (nodes := session.take_nodes()) is not None
        ]

    def check_integrity(self) -> None:
        """Asserts that slots add up, and that all are free without sessions; only between steps."""
        self.pool.check_integrity()
        assert self._sessions or self.pool.num_held == 0, f"{self.pool.num_held} draft slots held by no session"

    def _list_awake(self) -> list[SessionDrafting]:
        """The sessions that are not paused, in order of opening: of a crowd most wait for their verifier."""
        if self._awake is None:
            self._awake = [session for session in self._sessions.values() if not session.is_paused]
        return self._awake

    def _make_room(self, shares: list[Share]) -> list[Share]:
        """While slots are too few, the newest session gives up all it has."""
        while sum(share.num_rows for share in shares) > self.pool.num_free:
            newest = next(session for session in reversed(self._sessions.values()) if not session.is_starved)
            logger.info("session %s: draft KV is full, drafting stops for now", newest.request.session_id)
            newest.release()
            newest.is_starved = self._has_starved = True
            self.stats.num_starved += 1
            shares = [share for share in shares if share.session is not newest]
        return shares

    def _revive(self) -> None:
        """Sessions that gave up their slots go on, oldest first, once their text and trees fit again."""
        if not self._has_starved:
            return
        num_free = self.pool.num_free
        for session in self._sessions.values():
            if session.is_starved:
                num_free -= session.num_slots_wanted
                if num_free < 0:
                    return
                session.is_starved = False
        self._has_starved = False
