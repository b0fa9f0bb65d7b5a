"""`/tokenize`, `/detokenize` and the length of a conversation: the target's own tokenizer and chat template."""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request

from edge_agent.http import anthropic_request
from edge_agent.http.answer_schema import AnthropicErrorAnswer, CountAnswer, DetokenizeAnswer, TokenizeAnswer
from edge_agent.http.anthropic_request import COUNT_PATH, CountRequest
from edge_agent.http.api_docs import token_docs
from edge_agent.http.body import read_json_object
from edge_agent.http.messages import normalise_messages
from edge_agent.http.prompts import PromptEncoder, PromptIds, check_prompt_ids
from edge_agent.http.schema import ChatRequest, DetokenizeRequest, TokenizeRequest, parse_fields
from edge_agent.http.served_model import ServedModel
from edge_agent.http.settings import HttpSettings
from edge_agent.http.tools import tool_use
from specedge.errors import InvalidRequest

UNBUILT_TOKENIZE_FIELDS: Final = ("chat_template", "mm_processor_kwargs")


def token_router(model: ServedModel, encoder: PromptEncoder, settings: HttpSettings) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/tokenize", response_model=None, **token_docs(TokenizeRequest, TokenizeAnswer))
    async def tokenize(request: Request) -> dict[str, Any]:
        """Token ids of a text, or of a conversation in the model's own format."""
        payload = await read_json_object(request, settings)
        for name in UNBUILT_TOKENIZE_FIELDS:
            if payload.get(name):
                raise InvalidRequest(f"{name} is given, which is not supported here; leave it out", param=name)
        fields = parse_fields(TokenizeRequest, payload)
        model.require_name(fields.model)
        max_len = model.require_info().max_len
        token_ids = await _encode(fields, encoder, max_len)
        answer: dict[str, Any] = {"count": len(token_ids), "max_model_len": max_len, "tokens": list(token_ids)}
        return answer | ({"token_strs": encoder.spell(token_ids)} if fields.return_token_strs else {})

    @router.post("/detokenize", response_model=None, **token_docs(DetokenizeRequest, DetokenizeAnswer))
    async def detokenize(request: Request) -> dict[str, str]:
        """The text of token ids, special tokens included."""
        fields = parse_fields(DetokenizeRequest, await read_json_object(request, settings))
        model.require_name(fields.model)
        if fields.tokens:
            check_prompt_ids(fields.tokens, model.require_info().vocab_size, "tokens")
        return {"prompt": await encoder.decode(fields.tokens)}

    @router.post(COUNT_PATH, response_model=None, **token_docs(CountRequest, CountAnswer, error=AnthropicErrorAnswer))
    async def count_tokens(request: Request) -> dict[str, int]:
        """How many tokens the prompt of a conversation in Anthropic's form has."""
        chat = anthropic_request.chat_body(await read_json_object(request, settings), CountRequest)
        fields = parse_fields(ChatRequest, chat)
        model.require_name(fields.model)
        max_len = model.require_info().max_len
        tools = tool_use(fields.tools, fields.tool_choice, None).tools
        prompt = await encoder.encode_chat(fields, normalise_messages(fields.messages), max_len, tools)
        return {"input_tokens": len(prompt.token_ids)}

    return router


async def _encode(fields: TokenizeRequest, encoder: PromptEncoder, max_len: int) -> PromptIds:
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidRequest("give either prompt or messages, and not both", param="prompt")
    tools = tool_use(fields.tools, None, None).tools
    if fields.prompt is not None:
        return await encoder.encode_text(
            fields.prompt, max_len, add_special_tokens=fields.add_special_tokens is not False
        )
    return (await encoder.encode_chat(fields, normalise_messages(fields.messages), max_len, tools)).token_ids
