"""The one model that is served here: its name and the limits its verifier gave."""

from edge_agent.http.ports import GenerationPort
from edge_agent.http.schema import shown
from specedge.errors import UnknownModel, VerifierUnavailable
from specedge.wire.messages import ServerInfo


class ServedModel:
    """Answers questions about the model; some have no answer until the verifier has been reached once.

    Args:
        service: the generation service.
        name: what clients call the model; None is the verifier's own name for it.
    """

    def __init__(self, service: GenerationPort, name: str | None) -> None:
        self._service = service
        self._name = name

    @property
    def is_ready(self) -> bool:
        """Whether the verifier is there now."""
        return self._service.is_ready

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
