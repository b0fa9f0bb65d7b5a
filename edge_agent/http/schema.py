"""The bodies of both generation endpoints as clients write them.

Every field may be left out or null, and unknown ones are ignored. Only types are checked here; ranges are checked by
`SamplingParams.validate`, which the verifier trusts too.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from edge_agent.http.field_forms import (
    JsonSchema,
    Messages,
    OptionalMessages,
    Prediction,
    Prompt,
    ReasoningEffort,
    ResponseFormat,
    Stop,
    ToolChoice,
    Tools,
)
from specedge.errors import InvalidRequest
from specedge.sampling import MAX_LOGIT_BIAS_ENTRIES

_MAX_SHOWN_CHARS = 60

Int = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]


def _few_biases(value: Any) -> Any:
    """Refuses a large object before each of its entries is looked at, which other requests would wait for."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIAS_ENTRIES:
        raise PydanticCustomError("too_long", "an object of at most {limit} entries", {"limit": MAX_LOGIT_BIAS_ENTRIES})
    return value


class RequestFields(BaseModel):
    """A body's fields: strict about types, and blind to what it does not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


def number(description: str, minimum: float | None = None, maximum: float | None = None) -> Any:
    """An optional number; its limits are told here and checked where the value is used."""
    limits = {"minimum": minimum, "maximum": maximum}
    told = {name: limit for name, limit in limits.items() if limit is not None}
    return Field(None, description=description, json_schema_extra=lambda schema: _limit(schema, told))


def _limit(schema: dict[str, Any], limits: dict[str, float]) -> None:
    schema["anyOf"][0] |= limits


class StreamOptions(RequestFields):
    """What a stream carries besides text."""

    include_usage: bool | None = Field(None, description="true: the stream ends with a chunk of usage")
    continuous_usage_stats: bool | None = Field(None, description="true: every chunk has the usage so far")


class Speculation(RequestFields):
    """A request's wishes about drafting."""

    enabled: bool | None = Field(None, description="false: decode without drafts")
    budget: Int | None = number("most draft nodes alive at a time", 1, 4096)
    trace: bool | None = Field(
        None,
        description="true: chunks of a stream tell under `specedge` where each token came from and what its round was",
    )


class StructuredOutputs(RequestFields):
    """What the answer must follow: one of the first six."""

    json_: JsonSchema = Field(None, alias="json", description="a JSON schema")
    regex: str | None = Field(None, description="a regular expression that the whole answer matches")
    choice: list[str] | None = Field(None, description="the answer is one of these")
    grammar: str | None = Field(None, description="EBNF as in GBNF, with a rule named root")
    json_object: bool | None = Field(None, description="true: any JSON object")
    structural_tag: str | None = Field(None, description="a structural tag of xgrammar, in JSON")
    disable_any_whitespace: bool | None = Field(None, description="true is refused: JSON may have some blank space")
    disable_additional_properties: bool | None = Field(
        None, description="either way objects get no properties but those that the schema names or asks for more of"
    )
    whitespace_pattern: str | None = Field(None, description="refused: blank space is limited, not shaped")


class SamplingFields(RequestFields):
    """What every OpenAI endpoint takes."""

    model: str | None = Field(None, description="a name of `/v1/models`; left out or empty: the model that is served")
    stream: bool | None = Field(None, description="true: server-sent events as text comes")
    stop: Stop = Field(None, description="text that ends the answer and is left out of it, 1 to 1000 characters each")
    stop_token_ids: list[Int] | None = Field(None, description="tokens that end the answer, at most 128")
    include_stop_str_in_output: bool | None = Field(None, description="true: the text ends with what stopped it")
    skip_special_tokens: bool | None = Field(None, description="false: special tokens are part of the text")
    min_tokens: Int | None = number("nothing ends the answer before it has so many tokens", 0)
    ignore_eos: bool | None = Field(None, description="true: the end-of-sequence token does not end the answer")
    temperature: float | None = number("0 takes the best token; left out: the model's own default", 0, 2)
    top_p: float | None = number("keep the best tokens that together are so probable, above 0; 1 keeps all", 0, 1)
    top_k: Int | None = number("keep so many best tokens; 0 or -1 keeps all", -1)
    min_p: float | None = number("keep tokens at least so probable relative to the best one; 0 keeps all", 0, 1)
    seed: Int | None = number("the same seed gives the same text; left out: one is drawn")
    presence_penalty: float | None = number("subtracted once from tokens of the answer so far", -2, 2)
    frequency_penalty: float | None = number("subtracted for each occurrence in the answer so far", -2, 2)
    repetition_penalty: float | None = number("divides the logits of tokens of prompt and answer, above 0", 0)
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_few_biases)] = Field(
        None, description="added to the logits of token ids, -100 to 100; at most 1024 entries"
    )
    bad_words: list[str] | None = Field(None, description="texts that the answer never contains")
    allowed_token_ids: list[Int] | None = Field(None, description="the only tokens that the answer may contain")
    priority: Int | None = number("lower is served earlier; 0 is normal", -(2**31) + 1, 2**31 - 1)
    cache_salt: str | None = Field(
        None, description="only requests with the same salt find this prompt in the prefix cache; at least 1 character"
    )
    speculation: Speculation | None = Field(None, description="how this request is drafted for; the text is the same")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="what the answer must follow, in vLLM's form"
    )


class GenerationFields(SamplingFields):
    """What chats and completions take."""

    stream_options: StreamOptions | None = Field(None, description="what a stream carries besides text")
    n: Int | None = number("answers to each prompt; those after the first have the next seeds", 1, 8)
    max_tokens: Int | None = number("most tokens of an answer; prompt and answer must fit the context", 1)
    prompt_logprobs: Int | None = number(
        "log-probabilities of the prompt, and of so many best tokens beside each; not in streams", 0, 20
    )
    return_tokens_as_token_ids: bool | None = Field(None, description='true: logprobs call tokens "token_id:123"')
    return_token_ids: bool | None = Field(None, description="true: token ids of prompt and answer too")
    response_format: ResponseFormat = Field(None, description="what the answer must follow, in OpenAI's form")
    guided_json: JsonSchema = Field(None, description="older form of structured_outputs.json")
    guided_regex: str | None = Field(None, description="older form of structured_outputs.regex")
    guided_choice: list[str] | None = Field(None, description="older form of structured_outputs.choice")
    guided_grammar: str | None = Field(None, description="older form of structured_outputs.grammar")


class TemplateFields(RequestFields):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = Field(None, description="false: the assistant's turn is not begun")
    continue_final_message: bool | None = Field(None, description="true: the last message is left open, and continued")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables for the model's chat template")
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="the chat template gets it, with enable_thinking false for none and else true; "
        "what chat_template_kwargs says counts more",
    )


class ChatRequest(GenerationFields, TemplateFields):
    """Body of `/v1/chat/completions`."""

    messages: Messages = Field(description="the conversation; contents are texts")
    tools: Tools = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice = Field(
        None, description="none: no calls; auto, with tools the default: as the model likes"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in an answer")
    max_completion_tokens: Int | None = number("takes precedence over max_tokens", 1)
    logprobs: bool | None = Field(None, description="true: log-probabilities of the answer's tokens")
    top_logprobs: Int | None = number("best tokens told beside each token; needs logprobs", 0, 20)
    prediction: Prediction = Field(None, description="what the answer is expected to be; the text is the same")
    include_reasoning: bool | None = Field(None, description="false: leave out what the model thinks before it answers")


class CompletionRequest(GenerationFields):
    """Body of `/v1/completions`."""

    prompt: Prompt = Field(description="a text or token ids, or a list of such prompts")
    add_special_tokens: bool | None = Field(None, description="false: texts get no beginning-of-text token")
    max_tokens: Int | None = number("most tokens of an answer; 0 with echo only", 0)
    echo: bool | None = Field(None, description="true: the prompt is part of the text; max_tokens may then be 0")
    logprobs: Int | None = number("log-probabilities of the answer, and of so many best tokens beside each", 0, 20)


class TokenizeRequest(TemplateFields):
    """Body of `/tokenize`: a text or a conversation."""

    model: str | None = Field(None, description="a name of `/v1/models`; left out or empty: the model that is served")
    prompt: str | None = Field(None, description="a text; give this or messages")
    messages: OptionalMessages = Field(None, description="a conversation; give this or prompt")
    tools: Tools = Field(None, description="functions that the conversation offers")
    add_special_tokens: bool | None = Field(None, description="false: a text gets no beginning-of-text token")
    return_token_strs: bool | None = Field(None, description="true: the vocabulary's entries too")


class DetokenizeRequest(RequestFields):
    """Body of `/detokenize`."""

    model: str | None = Field(None, description="a name of `/v1/models`; left out or empty: the model that is served")
    tokens: list[Int] = Field(description="token ids of the target's vocabulary")


RequestModel = TypeVar("RequestModel", bound=BaseModel)


def parse_fields(model: type[RequestModel], payload: dict[str, Any]) -> RequestModel:
    """The payload's known fields with the right types.

    Raises:
        InvalidRequest: names the first field of a wrong type, what it holds and what it must be.
    """
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    param = field_path(first["loc"])
    if first["type"] == "missing":
        raise InvalidRequest(f"{param} is required", param=param)
    expected = first["msg"].removeprefix("Input should be ")
    raise InvalidRequest(f"{param} is {shown(first['input'])}; it should be {expected}", param=param)


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as clients write it: `messages[0].role`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def shown(value: Any) -> str:
    """A client's value in an error message, cut to a bounded length."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
