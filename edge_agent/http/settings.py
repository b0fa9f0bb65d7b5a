"""What the HTTP layer is told by the module that composes the process."""

from dataclasses import dataclass
from pathlib import Path

from edge_agent.http.tool_calls import ToolFormat
from specedge.model.execution import Execution


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits and defaults of the HTTP API.

    Args:
        model_name: the name clients ask for; None is the name the verifier gives its target model.
        max_new_tokens: length of a chat answer when the request names none; None is what the context has left.
        temperature: for requests that name none; None is the target's own default.
        seed: for requests that name none; None draws one for each.
        max_body_bytes: larger request bodies get 413.
        body_timeout_s: a body that takes longer to arrive gets 408.
        keep_alive_s: a stream that has nothing to send for so long sends a comment.
        max_concurrent_requests: generation requests at a time; one more gets 503.
        max_parallel_choices: sessions that one request runs at a time; its other choices wait for these.
        max_prompts: prompts in one completion request.
        num_tokenizer_threads: prompts being tokenised at a time.
        api_keys_file: the keys that requests need; None is that they need none.
        api_keys_check_s: how often at most that file is looked at.
        cors_origins: web pages of these origins may use the API; "*" is any.
        tool_format: how the model writes tool calls.
        splits_reasoning: answers of chats are split into thought and content.
        public_metrics: `/metrics` is a path of the API.
        draft_model, draft_execution: what drafts here and what computes it, for `/version`; None: nothing drafts.
        max_chars_per_token: prompts of more than this times the context are refused before they are tokenised.
    """

    model_name: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    max_concurrent_requests: int = 256
    max_parallel_choices: int = 8
    max_prompts: int = 128
    num_tokenizer_threads: int = 2
    max_chars_per_token: int = 16
    splits_reasoning: bool = False
    api_keys_file: Path | None = None
    api_keys_check_s: float = 1.0
    cors_origins: tuple[str, ...] = ()
    public_metrics: bool = False
    tool_format: ToolFormat = "hermes"
    draft_model: str | None = None
    draft_execution: Execution | None = None
