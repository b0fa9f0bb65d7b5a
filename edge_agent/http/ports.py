"""What the HTTP layer needs of the rest of the process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from edge_agent.detokenizer import DecodingTokenizer
from edge_agent.generation import Burst, GenerationRequest
from specedge.wire.messages import ServerInfo


class ChatTokenizer(DecodingTokenizer, Protocol):
    """What is used of a transformers tokenizer."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
        **variables: Any,
    ) -> Any:
        """The conversation as the model's prompt text."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
        """`input_ids` of the text."""


class GenerationPort(Protocol):
    """What the HTTP layer uses of the generation service."""

    @property
    def info(self) -> ServerInfo | None:
        """What the verifier serves; None until it has answered."""

    @property
    def is_ready(self) -> bool:
        """Whether the verifier has answered and is still there."""

    @property
    def failure(self) -> str | None:
        """Why the verifier cannot be reached, as far as more is known than that."""

    @property
    def verifiers(self) -> Sequence[tuple[str, str, str | None]]:
        """Address, state, and what is wrong, of each verifier where there are several."""

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Burst]]:
        """The answer in bursts; leaving the context cancels it."""
