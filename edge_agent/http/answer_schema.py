"""Answers as `/openapi.json` describes them.

Documentation only: what is sent is written by the writers and checked by no model; tests hold the two together.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

Json = dict[str, Any]

_FINGERPRINT = "the edge agent's version, with -draft-only where the draft model answered alone"


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str = Field(description="for people: names the value and what is allowed")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error")
    param: str | None = Field(description="the field that is wrong, null where it is none in particular")
    code: str | None = Field(description="for programs, such as context_length_exceeded; null where there is none")


class ErrorAnswer(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What is wrong."""

    type: str = Field(description="invalid_request_error, not_found_error, overloaded_error, ...")
    message: str = Field(description="for people: names the value and what is allowed")


class AnthropicErrorAnswer(BaseModel):
    """Anthropic's error object."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class CompletionTokensDetails(BaseModel):
    """Which tokens of the answer were what."""

    reasoning_tokens: int | None = Field(None, description="tokens of thoughts")


class PromptTokensDetails(BaseModel):
    """Which tokens of the prompt were what."""

    cached_tokens: int | None = Field(None, description="found in the verifier's prefix cache")


class Usage(BaseModel):
    """Tokens of a request: each prompt counts once, however many answers it gets."""

    prompt_tokens: int = Field(description="of all prompts")
    completion_tokens: int = Field(description="of all answers, each counted to the token that ended it")
    total_tokens: int = Field(description="of prompts and answers together")
    completion_tokens_details: CompletionTokensDetails | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class SpeculativeDecoding(BaseModel):
    """What drafting did for an answer; only where something was drafted."""

    mean_acceptance_length: float = Field(description="tokens for each verification that had a draft")
    draft_acceptance_rate: float = Field(description="accepted draft nodes for each verified one")
    acceptance_histogram: list[int] = Field(
        description="verifications that accepted 0, 1, 2, ... draft nodes, up to num_spec_tokens"
    )
    num_spec_steps: int = Field(description="verifications that had a draft")
    num_accepted_draft_tokens: int = Field(description="draft nodes that the target agreed with")
    num_draft_tokens: int = Field(description="draft nodes that were verified")
    num_spec_tokens: int = Field(description="most draft nodes in one verification")


class Metrics(BaseModel):
    """Measurements of a request with one answer."""

    speculative_decoding: SpeculativeDecoding


class FunctionCall(BaseModel):
    """What is to be called."""

    name: str = Field(description="a name of the request's tools")
    arguments: str = Field(description="JSON text as the model wrote it")


class ToolCall(BaseModel):
    """A tool call."""

    id: str = Field(description="what the tool's result names")
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None = Field(description="null where the answer is nothing but tool calls")
    refusal: None = Field(None, description="always null: nobody judges texts here")
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = Field(None, description="what the model thought before it answered")
    reasoning: str | None = Field(None, description="the same, under the name that other clients look for")


StopReason = str | int | None


class OpenAIHead(BaseModel):
    """What answers of OpenAI's two older endpoints have, whole or in chunks."""

    id: str = Field(description="of this answer")
    created: int = Field(description="seconds since 1970")
    model: str = Field(description="the name that requests use")
    system_fingerprint: str = Field(description=_FINGERPRINT)
    metrics: Metrics | None = None


class OpenAIAnswer(OpenAIHead):
    """What whole ones have."""

    usage: Usage


class OpenAIChunk(OpenAIHead):
    """What chunks have."""

    usage: Usage | None = Field(None, description="where `stream_options` asks for it")


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Field(description="of this answer among the `n`")
    message: ChatMessage
    logprobs: Json | None = Field(None, description="where asked for: `content`, an entry for each token")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(
        description="length: max_tokens or the context ended the answer"
    )
    stop_reason: StopReason = Field(None, description="the stop string or stop token id that ended the answer")


class ChatAnswer(OpenAIAnswer):
    """A whole answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int = Field(description="of this continuation, counted over all prompts")
    text: str = Field(description="the continuation, after the prompt where `echo` is true")
    logprobs: Json | None = Field(None, description="where asked for: lists with an entry for each token")
    finish_reason: Literal["stop", "length"] = Field(description="length: max_tokens or the context ended the text")
    stop_reason: StopReason = Field(None, description="the stop string or stop token id that ended the text")


class CompletionAnswer(OpenAIAnswer):
    """Whole continuations, numbered by prompt."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class FunctionDelta(BaseModel):
    """What is new of a call."""

    name: str | None = Field(None, description="with the call's first part")
    arguments: str = Field(description="the next characters of the arguments' JSON text")


class ToolCallDelta(BaseModel):
    """What is new of a tool call; id, type and name come with its first part."""

    index: int = Field(description="of the call in its answer")
    id: str | None = Field(None, description="what the tool's result names")
    type: Literal["function"] | None = Field(None, description="with the call's first part")
    function: FunctionDelta


class ChatDelta(BaseModel):
    """What is new of the assistant's turn."""

    role: Literal["assistant"] | None = Field(None, description="with an answer's first chunk")
    content: str | None = Field(None, description="the next characters")
    tool_calls: list[ToolCallDelta] | None = None
    reasoning_content: str | None = Field(None, description="the next characters of what the model thinks")
    reasoning: str | None = Field(None, description="the same, under the name that other clients look for")


class ChatChunkChoice(BaseModel):
    """What is new of one answer."""

    index: int = Field(description="of this answer among the `n`")
    delta: ChatDelta
    logprobs: Json | None = Field(None, description="of the new tokens")
    finish_reason: Literal["stop", "length", "tool_calls"] | None = Field(
        description="with the last chunk of an answer"
    )
    stop_reason: StopReason = Field(None, description="the stop string or stop token id that ended the answer")


class ChatChunk(OpenAIChunk):
    """A part of streamed answers to a chat."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class CompletionChunkChoice(BaseModel):
    """What is new of one continuation."""

    index: int = Field(description="of this continuation, counted over all prompts")
    text: str = Field(description="the next characters")
    logprobs: Json | None = Field(None, description="of the new tokens")
    finish_reason: Literal["stop", "length"] | None = Field(description="with the last chunk of a continuation")
    stop_reason: StopReason = Field(None, description="the stop string or stop token id that ended the text")


class CompletionChunk(OpenAIChunk):
    """A part of streamed continuations."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


class ResponseEvent(BaseModel):
    """An event of a streamed response."""

    type: str = Field(description="the event's name, such as response.output_text.delta")
    sequence_number: int = Field(description="0, 1, 2, ...")


class MessageEvent(BaseModel):
    """An event of a streamed message."""

    type: str = Field(description="the event's name, such as content_block_delta")


class CachedTokens(BaseModel):
    """Which input tokens were what."""

    cached_tokens: int = Field(description="found in the verifier's prefix cache")


class ReasoningTokens(BaseModel):
    """Which output tokens were what."""

    reasoning_tokens: int = Field(description="tokens of thoughts")


class ResponseUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int = Field(description="of the prompt")
    input_tokens_details: CachedTokens
    output_tokens: int = Field(description="of the answer, thoughts included")
    output_tokens_details: ReasoningTokens
    total_tokens: int = Field(description="of both together")


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(BaseModel):
    """A whole response; the fields that the request had are repeated."""

    id: str = Field(description="of this response; it is not stored")
    object: Literal["response"]
    created_at: int = Field(description="seconds since 1970")
    status: Literal["completed", "incomplete"] = Field(description="incomplete: `incomplete_details` says why")
    error: None = Field(None, description="null; a response that failed in a stream has code and message")
    incomplete_details: IncompleteDetails | None
    model: str = Field(description="the name that requests use")
    output: list[Json] = Field(description="items of type reasoning, message and function_call")
    store: Literal[False]
    system_fingerprint: str = Field(description=_FINGERPRINT)
    usage: ResponseUsage


class MessageUsage(BaseModel):
    """Tokens of a message."""

    input_tokens: int = Field(description="without those found in the cache")
    cache_read_input_tokens: int = Field(description="found in the verifier's prefix cache")
    cache_creation_input_tokens: int = Field(description="always 0: every prompt is cached")
    output_tokens: int = Field(description="of the answer, thoughts included")


class MessageAnswer(BaseModel):
    """A whole message."""

    id: str = Field(description="of this message")
    type: Literal["message"]
    role: Literal["assistant"]
    model: str = Field(description="the name that requests use")
    content: list[Json] = Field(description="blocks of type thinking, text and tool_use")
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] = Field(
        description="what ended the answer"
    )
    stop_sequence: str | None = Field(description="the one that ended the answer")
    system_fingerprint: str = Field(description=_FINGERPRINT)
    usage: MessageUsage


class CountAnswer(BaseModel):
    """How long a conversation is."""

    input_tokens: int = Field(description="of the prompt that it becomes")


class TokenizeAnswer(BaseModel):
    """Token ids of a text or a conversation."""

    count: int = Field(description="number of tokens")
    max_model_len: int = Field(description="the target's context in tokens")
    tokens: list[int] = Field(description="their ids")
    token_strs: list[str] | None = Field(None, description="the vocabulary's entry of each id, where asked for")


class DetokenizeAnswer(BaseModel):
    """The text of token ids."""

    prompt: str = Field(description="the text, special tokens included")


class ModelEntry(BaseModel):
    """A model."""

    id: str = Field(description="the name that requests use")
    object: Literal["model"]
    created: int = Field(description="when this process started, in seconds since 1970")
    owned_by: str = Field(description="always specedge")
    root: str | None = Field(None, description="the target as the verifier names it")
    max_model_len: int | None = Field(None, description="the target's context in tokens")


class ModelList(BaseModel):
    """The models served here."""

    object: Literal["list"]
    data: list[ModelEntry]


class HealthAnswer(BaseModel):
    """The process lives."""

    status: Literal["ok"]


class VerifierState(BaseModel):
    """One of several verifiers."""

    address: str = Field(description="as in `verifier_address`, or as found there")
    state: Literal["unknown", "good", "doubted", "busy", "lost", "away", "left_out"] = Field(
        description="`unknown` before it has said what it serves, `doubted` after a failure, `busy` after a refusal "
        "because it was full, `lost` while its circuit breaker is open, `away` while it says that it serves nothing, "
        "`left_out` while it serves something else than the others"
    )
    reason: str | None = Field(None, description="why it is left out or refuses this edge")


class ReadyAnswer(BaseModel):
    """Whether requests sent now will be served."""

    status: Literal["ready", "not ready"] = Field(description="as the answer's status code, 200 or 503")
    reason: str | None = Field(None, description="why not")
    degraded: Literal["draft-only"] | None = Field(
        None, description="no verifier can be reached, and the draft model answers alone"
    )
    verifiers: list[VerifierState] | None = Field(None, description="only where there are several")


class VersionAnswer(BaseModel):
    """Versions, and what computes drafts."""

    version: str = Field(description="of this edge agent")
    verifier_version: str | None = Field(description="null until the verifier has answered")
    protocol_version: int | None = Field(description="between edge and verifier; null until it has answered")
    target_model: str | None = Field(description="as the verifier names it; null until it has answered")
    draft_model: str | None = Field(description="null: nothing drafts here")
    draft_execution: Json | None = Field(description="device, engine and number format of the draft model")
