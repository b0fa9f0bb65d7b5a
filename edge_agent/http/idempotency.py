"""Requests that name their answer, by `Idempotency-Key` or `X-Conversation-Id`, and take it up where it broke off.

The rules, for one API key:
1. The same name and the same body: the recorded tokens come again, and the answer goes on after them.
2. The same `Idempotency-Key` and another body: refused. Another body in a conversation is its next answer, and the one
   before it is forgotten.
3. The same name and body while the answer is being made: refused until its first reader is gone.
4. What model, prompt or parameters make of the body has changed: the answer begins anew, under its old id.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final, NamedTuple

from starlette.requests import Request

from edge_agent.http.answer_names import AnswerName, name_of
from edge_agent.http.choices import Choice
from edge_agent.http.errors import AnswerRunning, KeyReused
from edge_agent.http.sampling_fields import random_seed
from edge_agent.http.served_model import DraftOnlyModel, ServedModel
from edge_agent.journal.entries import AnswerHeader
from edge_agent.journal.journal import AnswerRecord, Found, Journal
from edge_agent.journal.metrics import TakenUp
from edge_agent.verifier_member import Identity
from specedge.wire.messages import ServerInfo

logger = logging.getLogger(__name__)

REPLAYED_HEADER: Final = "idempotent-replayed"
_SHOWN_CHARS: Final = 12


class _Asked(NamedTuple):
    """What a request asks for, as far as it counts whether another one is the same."""

    path: str
    body: str

    def __str__(self) -> str:
        return f"POST {self.path} with a body of SHA-256 {self.body[:_SHOWN_CHARS]}..."


class Claim:
    """A request's right to its answer; without a name it is a right to a new one that nobody records.

    Args:
        model: what answers.

    Attributes:
        model: this.
        is_replay: the answer begins with recorded tokens; known after `bind`.
    """

    is_replay = False

    def __init__(self, model: ServedModel | DraftOnlyModel) -> None:
        self.model = model

    def identify(self, answer_id: str, created: int) -> tuple[str, int]:
        """Id and time of the answer: these if it is new, else its own."""
        return answer_id, created

    def draw_seed(self) -> int:
        """The seed for the next prompt of a request without one."""
        return random_seed()

    def bind(self, choices: Sequence[Choice], info: ServerInfo) -> Sequence[Choice]:
        """The choices with their places in the journal; after `identify`."""
        return choices

    def release(self) -> None:
        """The answer has ended or broken off."""


class Claims:
    """All names in use.

    Args:
        model: what answers; the draft model alone where an answer begins while no verifier can be reached.
        journal: None: names are ignored.
    """

    def __init__(self, model: ServedModel, journal: Journal | None) -> None:
        self._model = model
        self._journal = journal
        self._running: dict[str, RecordedClaim] = {}

    @asynccontextmanager
    async def claim(self, request: Request, payload: Mapping[str, Any]) -> AsyncIterator[Claim]:
        """The claim of a request; an error inside the block releases it, else its owner does.

        Raises:
            InvalidRequest: the name cannot be one.
            KeyReused: the key is another request's.
            AnswerRunning: the answer is being made for somebody else.
        """
        name = name_of(request)
        if self._journal is None or name is None:
            yield Claim(await self._beginner())
            return
        claim = await self._take(self._journal, name, request, payload)
        try:
            yield claim
        except BaseException:
            claim.release()
            raise

    async def _take(
        self, journal: Journal, name: AnswerName, request: Request, payload: Mapping[str, Any]
    ) -> "RecordedClaim":
        asked = _Asked(request.url.path, sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest())
        owner: bytes = request.scope["state"].get("api_key", b"")
        file = journal.key.name_of(owner, name.header.encode(), name.text.encode())
        if (other := self._running.get(file)) is not None:
            _require_same(name, other.asked, asked)
            if other.asked == asked:
                raise AnswerRunning(f"the answer for {name.header} {name.text!r} is being sent to another request")
        claim = RecordedClaim(self._model, journal, self._running, file, asked)
        self._running[file] = claim
        try:
            found = await journal.find(file)
            if found is not None:
                known = _Asked(found.answer.header.path, found.answer.header.body)
                _require_same(name, known, asked)
                if known == asked:
                    claim.take_up(found)
            if found is None or not claim.is_taken_up:
                claim.model = await self._beginner()
            elif found.answer.header.is_draft_only and self._model.draft_only is not None:
                claim.model = self._model.draft_only
        except BaseException:
            claim.release()
            raise
        return claim

    async def _beginner(self) -> ServedModel | DraftOnlyModel:
        """What answers a request that begins now."""
        draft_only = self._model.draft_only
        return self._model if draft_only is None or not await draft_only.is_needed() else draft_only


class RecordedClaim(Claim):
    """A claim to an answer with a name.

    Args:
        model: what answers.
        journal: where the answer is recorded.
        running: the claims that hold, by file; this one is there until it is released.
        file: the answer's.
        asked: what for.
    """

    def __init__(
        self,
        model: ServedModel | DraftOnlyModel,
        journal: Journal,
        running: dict[str, "RecordedClaim"],
        file: str,
        asked: _Asked,
    ) -> None:
        super().__init__(model)
        self.asked = asked
        self._journal = journal
        self._running = running
        self._file = file
        self._found: Found | None = None
        self._record: AnswerRecord | None = None
        self._identity = ("", 0)
        self._num_seeds = 0

    @property
    def is_taken_up(self) -> bool:
        """Whether something of the answer is there already."""
        return self._found is not None

    def take_up(self, found: Found) -> None:
        """The answer is the one that was found."""
        self._found = found

    def identify(self, answer_id: str, created: int) -> tuple[str, int]:
        """See `Claim.identify`."""
        self._identity = (answer_id, created)
        if self._found is not None:
            self._identity = (self._found.answer.header.answer_id, self._found.answer.header.created)
        return self._identity

    def draw_seed(self) -> int:
        """From the journal's secret: an answer of which nothing was recorded in time is the same once more."""
        self._num_seeds += 1
        return self._journal.key.seed_of(f"{self._file} {self.asked.path} {self.asked.body} {self._num_seeds}".encode())

    def bind(self, choices: Sequence[Choice], info: ServerInfo) -> Sequence[Choice]:
        """See `Claim.bind`."""
        header = AnswerHeader(*self._identity, *self.asked, _plan(choices, info), self.model.is_draft_only)
        if self._found is not None and self._found.answer.header.plan != header.plan:
            logger.warning("an answer begins anew: its model, prompt or parameters are not what they were")
            self._found = None
        self._record = self._journal.record(self._file, header, self._found)
        places = self._record.choices(len(choices))
        num_replayed = 0 if self._found is None else self._found.answer.num_tokens
        self.is_replay = num_replayed > 0
        is_whole = all(place.told.is_ended or place.told.finish_reason for place in places)
        how: TakenUp = "replayed" if is_whole else "continued" if self.is_replay else "begun"
        self._journal.metrics.answers.labels(how).inc()
        self._journal.metrics.replayed_tokens.inc(num_replayed)
        return [replace(choice, record=place) for choice, place in zip(choices, places, strict=True)]

    def release(self) -> None:
        """See `Claim.release`."""
        if self._record is not None:
            self._record.close()
        if self._running.get(self._file) is self:
            del self._running[self._file]


def _require_same(name: AnswerName, known: _Asked, asked: _Asked) -> None:
    if not name.is_conversation and known != asked:
        raise KeyReused(f"{name.header} {name.text!r} was used for {known}; this request is {asked}", name.header)


def _plan(choices: Sequence[Choice], info: ServerInfo) -> str:
    """What decides every token of an answer."""
    parts = [(choice.request.prompt_ids, choice.request.sampling) for choice in choices]
    return sha256(repr((Identity.of(info), parts)).encode()).hexdigest()
