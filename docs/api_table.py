"""Writes the tables of `docs/api.md` from the code: `python docs/api_table.py`. A test holds file and code together.

A field is supported if the request's schema has it, refused if `edge_agent/http/unbuilt.py` or a form's own list names
it, and ignored otherwise. Only the field lists of other servers and the reasons are written here.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from edge_agent.http import anthropic_request, responses_request, unbuilt
from edge_agent.http.anthropic_request import COUNT_PATH, CountRequest, MessagesRequest
from edge_agent.http.api_docs import body_docs
from edge_agent.http.responses_request import ResponsesRequest
from edge_agent.http.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from edge_agent.http.token_routes import UNBUILT_TOKENIZE_FIELDS

PAGE = Path(__file__).with_name("api.md")
BEGIN, END = "<!-- tables: written by docs/api_table.py -->\n", "<!-- end of tables -->\n"

# What OpenAI's API and vLLM's server know.
_SAMPLING = (
    "model stream stream_options n stop stop_token_ids include_stop_str_in_output skip_special_tokens "
    "spaces_between_special_tokens max_tokens min_tokens ignore_eos temperature top_p top_k min_p seed "
    "presence_penalty frequency_penalty repetition_penalty length_penalty logit_bias allowed_token_ids bad_words "
    "logprobs prompt_logprobs echo use_beam_search early_stopping response_format structured_outputs guided_json "
    "guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern add_special_tokens "
    "truncate_prompt_tokens return_token_ids return_tokens_as_token_ids logits_processors cache_salt "
    "kv_transfer_params ec_transfer_params priority request_id session_id user vllm_xargs speculation "
    "repetition_detection logprob_token_ids watermarking truncation_side stream_interval"
)
_CHAT = (
    "messages max_completion_tokens tools tool_choice parallel_tool_calls top_logprobs functions function_call "
    "reasoning_effort include_reasoning add_generation_prompt continue_final_message chat_template "
    "chat_template_kwargs documents mm_processor_kwargs prediction audio modalities service_tier store metadata "
    "verbosity web_search_options safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention "
    "moderation media_io_kwargs thinking_token_budget return_prompt_text"
)
_COMPLETION = "prompt suffix best_of prompt_embeds"
_RESPONSES = (
    "model input instructions max_output_tokens stream stream_options temperature top_p tools tool_choice "
    "parallel_tool_calls text reasoning store metadata include previous_response_id conversation prompt background "
    "max_tool_calls truncation top_logprobs service_tier safety_identifier prompt_cache_key prompt_cache_options "
    "prompt_cache_retention moderation context_management user seed priority request_id vllm_xargs cache_salt "
    "mm_processor_kwargs image access_programs speculation"
)
_MESSAGES = (
    "model max_tokens messages system stream stop_sequences temperature top_p top_k tools tool_choice thinking "
    "metadata service_tier container mcp_servers context_management output_format seed priority speculation"
)
_COUNT = "model messages system tools tool_choice thinking cache_control context_management mcp_servers"
_TOKENIZE = (
    "model prompt messages add_special_tokens add_generation_prompt continue_final_message chat_template "
    "chat_template_kwargs return_token_strs tools mm_processor_kwargs"
)
_DETOKENIZE = "model tokens"

_NOT_BUILT = "not built"
REASONS: Mapping[str, str] = {
    "access_programs": "there are no programs here",
    "add_special_tokens": "the chat template writes all special tokens",
    "audio": "text only",
    "background": "nothing is stored",
    "best_of": "`n` gives all answers; none is judged better than another",
    "cache_control": "the prefix cache finds prompts by their tokens",
    "chat_template": "a template from outside would run here; the model has its own",
    "container": "no code is run here",
    "context_management": "the conversation is taken as it is",
    "conversation": "nothing is stored",
    "documents": "put them into messages",
    "ec_transfer_params": "text only",
    "early_stopping": "no beam search",
    "function_call": "the older form of `tool_choice`",
    "functions": "the older form of `tools`",
    "enable_response_messages": "`return_token_ids` of /v1/chat/completions tells the prompt",
    "image": "text only",
    "kv_transfer_params": "keys and values stay on the verifier",
    "length_penalty": "no beam search",
    "logprob_token_ids": "`top_logprobs` tells the best ones",
    "logits_processors": "no code from requests is run",
    "max_tool_calls": "tools are called by the client",
    "mcp_servers": "tools are called by the client",
    "media_io_kwargs": "text only",
    "metadata": "nothing is stored",
    "mm_processor_kwargs": "text only",
    "modalities": "text only",
    "moderation": "nobody judges texts here",
    "previous_input_messages": "send the conversation as input",
    "previous_response": "send its output as input",
    "previous_response_id": "nothing is stored: send the conversation",
    "prompt": "prompts are not stored: send the text",
    "prompt_cache_key": "the prefix cache finds prompts by their tokens",
    "prompt_cache_options": "the prefix cache finds prompts by their tokens",
    "prompt_cache_retention": "the prefix cache keeps what was used last",
    "prompt_embeds": "text and token ids only",
    "repetition_detection": "penalties and `max_tokens` end what repeats",
    "request_id": "the header `x-request-id` names requests",
    "return_prompt_text": "`return_token_ids` and /detokenize tell it",
    "safety_identifier": "nobody here looks at it",
    "service_tier": "one tier; `priority` orders requests",
    "session_id": "the prefix cache finds prompts by their tokens",
    "spaces_between_special_tokens": "texts are those of the tokenizer",
    "store": "nothing is stored",
    "stream_interval": "a chunk is what one verification brought",
    "stream_options": "the last event has the usage",
    "suffix": "models here continue text, they do not fill gaps",
    "thinking_token_budget": "`max_tokens` bounds thoughts and answer together",
    "truncate_prompt_tokens": "a prompt is never cut unasked; one that is too long is refused",
    "truncation_side": "a prompt is never cut",
    "truncation": "a prompt is never cut; one that is too long is refused",
    "use_beam_search": "no beam search",
    "user": "API keys tell users apart",
    "verbosity": "say it in the prompt",
    "vllm_xargs": "for plug-ins of another server",
    "watermarking": "every token is the target's own sample",
    "web_search_options": "no web search",
}

Rows = list[tuple[str, str, str]]


def rows(body: type[BaseModel], known: str, refused: frozenset[str]) -> Rows:
    """Field, what becomes of it, and what it means or why."""
    properties = body_docs(body)["requestBody"]["content"]["application/json"]["schema"]["properties"]
    table: Rows = []
    for name in sorted(set(known.split()) | set(properties) | refused):
        if name in refused:  # some values of a field may be refused although it is known
            state = "supported in part" if name in properties else "refused"
            reason = properties[name]["description"] if name in properties else REASONS.get(name, _NOT_BUILT)
        elif name in properties:
            state, reason = "supported", properties[name]["description"]
        else:
            state, reason = "ignored", REASONS[name]
        table.append((name, state, reason))
    return table


def tables() -> dict[str, Rows]:
    """The rows of each endpoint."""
    return {
        "POST /v1/chat/completions": rows(ChatRequest, f"{_SAMPLING} {_CHAT}", frozenset(unbuilt._CHAT)),
        "POST /v1/completions": rows(CompletionRequest, f"{_SAMPLING} {_COMPLETION}", frozenset(unbuilt._COMPLETION)),
        "POST /v1/responses": rows(ResponsesRequest, _RESPONSES, frozenset(responses_request._UNBUILT)),
        "POST /v1/messages": rows(MessagesRequest, _MESSAGES, frozenset(anthropic_request._UNBUILT)),
        f"POST {COUNT_PATH}": rows(CountRequest, _COUNT, frozenset(anthropic_request._UNBUILT)),
        "POST /tokenize": rows(TokenizeRequest, _TOKENIZE, frozenset(UNBUILT_TOKENIZE_FIELDS)),
        "POST /detokenize": rows(DetokenizeRequest, _DETOKENIZE, frozenset()),
    }


def written() -> str:
    """The tables as Markdown."""
    parts = []
    for endpoint, table in tables().items():
        lines = [f"| `{name}` | {state} | {reason} |" for name, state, reason in table]
        parts.append(
            "\n".join((f"### `{endpoint}`\n", "| field | | what it does, or why not |", "|---|---|---|", *lines))
        )
    return "\n" + "\n\n".join(parts) + "\n\n"


def page(text: str) -> str:
    """A page with its tables made anew."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + written() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
