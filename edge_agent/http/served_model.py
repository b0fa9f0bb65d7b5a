"""The one model that is served here: its name and the limits its verifier gave."""

from edge_agent.draft_only import DraftOnly
from edge_agent.http.ports import GenerationPort
from edge_agent.http.schema import shown
from specedge.errors import UnknownModel, VerifierUnavailable
from specedge.wire.messages import ServerInfo


class ServedModel:
    """Answers questions about the model; some have no answer until the verifier has been reached once.

    Args:
        service: the generation service.
        name: what clients call the model; None is the verifier's own name for it.
        draft_only: answers while no verifier can be reached; None: nobody does.
    """

    is_draft_only = False

    def __init__(self, service: GenerationPort, name: str | None, draft_only: DraftOnly | None = None) -> None:
        self._service = service
        self._name = name
        self._draft_only = draft_only

    @property
    def is_ready(self) -> bool:
        """Whether the verifier is there now."""
        return self._service.is_ready

    @property
    def is_degraded(self) -> bool:
        """Whether the draft model answers alone."""
        return self._draft_only is not None and self._draft_only.is_on

    @property
    def draft_only(self) -> "DraftOnlyModel | None":
        """What answers while no verifier can be reached."""
        return None if self._draft_only is None else DraftOnlyModel(self, self._draft_only)

    @property
    def failure(self) -> str:
        """Why the verifier is not there."""
        return self._service.failure or "the verifier does not answer"

    @property
    def verifiers(self) -> list[dict[str, str]]:
        """Each verifier where there are several."""
        return [
            {"address": address, "state": state} | ({} if reason is None else {"reason": reason})
            for address, state, reason in self._service.verifiers
        ]

    @property
    def info(self) -> ServerInfo | None:
        """What the verifier serves; stays known while it is away, since answers wait for it."""
        return self._service.info

    @property
    def name(self) -> str | None:
        """The model's name, None until it is known."""
        if self._name is not None:
            return self._name
        info = self.info
        return None if info is None else info.target_model

    def require_info(self) -> ServerInfo:
        """What the verifier serves; raises VerifierUnavailable when it was never reached."""
        info = self.info
        if info is None:
            raise VerifierUnavailable(self._service.failure or "the verifier has not answered yet")
        return info

    def require_name(self, asked: str | None) -> str:
        """The model's name, if it is the one asked for; an empty name asks for whatever is there.

        Raises:
            UnknownModel: names the model that exists.
            VerifierUnavailable: the name is not known yet.
        """
        name = self.name
        if name is None:
            raise VerifierUnavailable(self._service.failure or "the verifier has not answered yet")
        if asked and asked != name:
            raise UnknownModel(f"the model {shown(asked)} does not exist here; there is {name!r}", param="model")
        return name


class DraftOnlyModel:
    """The draft model in the place of the served one.

    Args:
        model: the served one.
        draft_only: the draft model.
    """

    is_draft_only = True

    def __init__(self, model: ServedModel, draft_only: DraftOnly) -> None:
        self._model = model
        self._draft_only = draft_only

    async def is_needed(self) -> bool:
        """See `DraftOnly.is_needed`."""
        return await self._draft_only.is_needed()

    def require_info(self) -> ServerInfo:
        """What it serves."""
        return self._draft_only.info

    def require_name(self, asked: str | None) -> str:
        """The served model's name; while a verifier has never told it, whatever was asked for."""
        if self._model.name is None:
            return asked or self._draft_only.info.target_model
        return self._model.require_name(asked)
