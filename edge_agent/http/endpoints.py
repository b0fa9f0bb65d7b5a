"""The generation endpoints: a body is read, checked and turned into a plan, which the answer then carries out."""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from starlette.requests import Request

from edge_agent.detokenizer import DetokenizerFactory
from edge_agent.draft_only import DRAFT_ONLY
from edge_agent.generation import GenerationRequest
from edge_agent.http import anthropic_request, responses_request
from edge_agent.http.answer import Answer, AnswerPlan
from edge_agent.http.anthropic_writer import AnthropicWriter
from edge_agent.http.body import read_json_object
from edge_agent.http.choices import Choice, ChoiceRunner
from edge_agent.http.delta import ChainedOutput, OutputParser, PlainOutput
from edge_agent.http.idempotency import Claim, Claims
from edge_agent.http.logprobs import ChatLogprobs, CompletionLogprobs
from edge_agent.http.messages import normalise_messages
from edge_agent.http.openai_writer import AnswerHead, ChatShape, CompletionShape, OpenAIWriter
from edge_agent.http.prediction import check_prediction_ids, prediction_text
from edge_agent.http.prompts import PromptEncoder, PromptIds, check_prompt_ids, split_prompts
from edge_agent.http.reasoning import ReasoningOutput, begins_inside
from edge_agent.http.responses_writer import ResponsesWriter
from edge_agent.http.sampling_fields import (
    build_sampling,
    choice_seed,
    fit_answer,
    is_traced,
    max_draft_nodes,
    num_choices,
    refuse_trace,
    stop_strings,
    wire_priority,
    wire_salt,
)
from edge_agent.http.schema import ChatRequest, CompletionRequest, GenerationFields, parse_fields
from edge_agent.http.settings import HttpSettings
from edge_agent.http.structured import chat_grammar, grammar_of
from edge_agent.http.token_fields import TokenDetails, bad_words_of, chat_details, completion_details
from edge_agent.http.tool_calls import CallIds, tool_output
from edge_agent.http.tools import ToolUse, tool_use
from edge_agent.http.unbuilt import refuse_unbuilt_chat_fields, refuse_unbuilt_completion_fields
from edge_agent.http.writer import AnswerWriter
from specedge import __version__
from specedge.errors import InvalidRequest
from specedge.grammar.spec import GrammarSpec

_COMPLETION_MAX_TOKENS = 16
_NUM_CONTEXT_IDS = 8


class GenerationEndpoints:
    """Handlers of the routes that generate."""

    def __init__(
        self,
        encoder: PromptEncoder,
        runner: ChoiceRunner,
        detokenizers: DetokenizerFactory,
        settings: HttpSettings,
        claims: Claims,
    ) -> None:
        self._claims = claims
        self._encoder = encoder
        self._runner = runner
        self._detokenizers = detokenizers
        self._settings = settings

    async def chat(self, request: Request) -> Answer:
        """Continues a conversation."""
        arrived_s = time.perf_counter()
        payload = await read_json_object(request, self._settings)
        async with self._claims.claim(request, payload) as claim:
            return await self.answer_chat(payload, arrived_s, "chatcmpl", self._openai_chat_writer, claim)

    async def messages(self, request: Request) -> Answer:
        """Continues a conversation in Anthropic's form."""
        arrived_s = time.perf_counter()
        payload = await read_json_object(request, self._settings)
        refuse_trace(payload)
        body = anthropic_request.chat_body(payload)
        async with self._claims.claim(request, payload) as claim:
            return await self.answer_chat(body, arrived_s, "msg", lambda head, _: AnthropicWriter(head), claim)

    async def responses(self, request: Request) -> Answer:
        """Continues a conversation in the form of OpenAI's responses."""
        arrived_s = time.perf_counter()
        payload = await read_json_object(request, self._settings)
        refuse_trace(payload)
        chat, own_words = responses_request.chat_body(payload)

        def writer(head: AnswerHead, fields: ChatRequest) -> ResponsesWriter:
            return ResponsesWriter(head, payload, ChatLogprobs(chat_details(fields), self._detokenizers))

        async with self._claims.claim(request, payload) as claim:
            with own_words:
                return await self.answer_chat(chat, arrived_s, "resp", writer, claim, format_in="text.format")

    async def answer_chat(
        self,
        payload: dict[str, Any],
        arrived_s: float,
        id_prefix: str,
        make_writer: Callable[[AnswerHead, ChatRequest], AnswerWriter],
        claim: Claim,
        format_in: str = "response_format",
    ) -> Answer:
        """The answer to a conversation.

        Args:
            payload: a body of `/v1/chat/completions`.
            arrived_s: when the request arrived, by `time.perf_counter`.
            id_prefix: what the answer's id begins with.
            make_writer: how the answer is written.
            claim: the request's to its answer.
            format_in: the client's field that `response_format` came in.

        Raises:
            InvalidRequest: names what is wrong and where.
        """
        refuse_unbuilt_chat_fields(payload)
        fields = parse_fields(ChatRequest, payload)
        head = self._head(id_prefix, fields, claim)
        details = chat_details(fields)
        messages = normalise_messages(fields.messages)
        max_len = claim.model.require_info().max_len
        use = tool_use(fields.tools, fields.tool_choice, fields.parallel_tool_calls)
        prompt_ids, prompt_text = await self._encoder.encode_chat(fields, messages, max_len, use.tools)
        prediction_ids: PromptIds = ()
        if prediction := prediction_text(fields.prediction):
            prediction_ids = await self._encoder.encode_text(
                prediction, max_len, add_special_tokens=False, param="prediction"
            )
            check_prediction_ids(prediction_ids, max_len)
        thinks_in = prompt_text if self._settings.splits_reasoning else None
        grammar = chat_grammar(grammar_of(fields, format_in), use, self._settings.tool_format, thinks_in)
        asked, asked_in = fields.max_tokens, "max_tokens"
        if fields.max_completion_tokens is not None:
            asked, asked_in = fields.max_completion_tokens, "max_completion_tokens"
        choices = self._choices(
            fields,
            [prompt_ids],
            head=head,
            claim=claim,
            asked=asked,
            asked_in=asked_in,
            default=self._settings.max_new_tokens,
            prompt_in="messages",
            details=details,
            bad_words=await self._encoder.encode_bad_words(bad_words_of(fields)),
            grammar=grammar,
        )
        choices = [
            replace(choice, request=replace(choice.request, prediction_ids=prediction_ids)) for choice in choices
        ]
        writer = make_writer(head, fields)
        plan = self._plan(fields, choices, len(prompt_ids), writer, arrived_s, details, claim)
        make_output = partial(self._output, use, prompt_text, count(), head.id)
        return Answer(replace(plan, make_output=make_output), self._runner)

    async def complete(self, request: Request) -> Answer:
        """Continues texts."""
        arrived_s = time.perf_counter()
        payload = await read_json_object(request, self._settings)
        async with self._claims.claim(request, payload) as claim:
            return await self._answer_completion(payload, arrived_s, claim)

    async def _answer_completion(self, payload: dict[str, Any], arrived_s: float, claim: Claim) -> Answer:
        refuse_unbuilt_completion_fields(payload)
        fields = parse_fields(CompletionRequest, payload)
        head = self._head("cmpl", fields, claim)
        details = completion_details(fields)
        texts = split_prompts(fields.prompt, self._settings.max_prompts)
        prompts = [await self._encode(prompt, fields, claim) for prompt in texts]
        choices = self._choices(
            fields,
            prompts,
            head=head,
            claim=claim,
            asked=1 if details.drops_answer else fields.max_tokens,
            asked_in="max_tokens",
            default=_COMPLETION_MAX_TOKENS,
            prompt_in="prompt",
            details=details,
            bad_words=await self._encoder.encode_bad_words(bad_words_of(fields)),
            grammar=grammar_of(fields),
        )
        choices = [replace(choice, context_ids=choice.request.prompt_ids[-_NUM_CONTEXT_IDS:]) for choice in choices]
        if details.echoes:
            echoes = [self._echo(*prompt, fields) for prompt in zip(texts, prompts, strict=True)]
            choices = [
                replace(choice, echo=echoes[i * len(echoes) // len(choices)]) for i, choice in enumerate(choices)
            ]
        num_prompt_tokens = sum(len(prompt_ids) for prompt_ids in prompts)
        skips_special = fields.skip_special_tokens is not False
        logprobs = CompletionLogprobs(details, self._detokenizers, skips_special=skips_special)
        writer = OpenAIWriter(head, CompletionShape(logprobs), **_usage_options(fields))
        return Answer(self._plan(fields, choices, num_prompt_tokens, writer, arrived_s, details, claim), self._runner)

    def _output(self, use: ToolUse, prompt_text: str, numbers: Iterator[int], answer_id: str) -> OutputParser:
        calls = self._tool_output(use, CallIds(f"{answer_id}-{next(numbers)}"))
        if not self._settings.splits_reasoning:
            return calls
        return ChainedOutput(ReasoningOutput(begins_inside(prompt_text)), calls)

    def _tool_output(self, use: ToolUse, new_id: Callable[[], str]) -> OutputParser:
        if use.choice == "none":
            return PlainOutput()
        return tool_output(self._settings.tool_format, new_id, is_parallel=use.is_parallel)

    def _head(self, prefix: str, fields: GenerationFields, claim: Claim) -> AnswerHead:
        name = claim.model.require_name(fields.model)
        answer_id, created = claim.identify(f"{prefix}-{uuid.uuid4().hex}", int(time.time()))
        fingerprint = f"specedge-{__version__}" + (f"-{DRAFT_ONLY}" if claim.model.is_draft_only else "")
        return AnswerHead(answer_id, created, name, fingerprint)

    async def _encode(self, prompt: str | list[int], fields: CompletionRequest, claim: Claim) -> PromptIds:
        if not isinstance(prompt, str):
            return tuple(prompt)
        max_len = claim.model.require_info().max_len
        adds_special = fields.add_special_tokens is not False
        return await self._encoder.encode_text(prompt, max_len, add_special_tokens=adds_special)

    def _echo(self, prompt: str | list[int], prompt_ids: PromptIds, fields: CompletionRequest) -> str:
        """A prompt as text."""
        if isinstance(prompt, str):
            return prompt
        detokenizer = self._detokenizers.create(skips_special=fields.skip_special_tokens is not False)
        return "".join(detokenizer.feed(token_id) for token_id in prompt_ids) + detokenizer.flush()

    def _choices(
        self,
        fields: GenerationFields,
        prompts: list[PromptIds],
        *,
        head: AnswerHead,
        claim: Claim,
        asked: int | None,
        asked_in: str,
        default: int | None,
        prompt_in: str,
        details: TokenDetails,
        bad_words: tuple[tuple[int, ...], ...],
        grammar: GrammarSpec | None,
    ) -> list[Choice]:
        info = claim.model.require_info()
        num = num_choices(fields)
        stops = stop_strings(fields.stop)
        if fields.stream_options is not None and not fields.stream:
            raise InvalidRequest("stream_options is given, but stream is not true", param="stream_options")
        choices: list[Choice] = []
        for prompt_ids in prompts:
            max_tokens = fit_answer(
                len(prompt_ids), asked, default, info.max_len, asked_in=asked_in, prompt_in=prompt_in
            )
            check_prompt_ids(prompt_ids, info.vocab_size, prompt_in)
            sampling = build_sampling(fields, max_tokens, info, self._settings, claim.draw_seed)
            sampling = details.ask(sampling, bad_words)
            sampling = replace(sampling, grammar=grammar)
            sampling.validate(info.vocab_size)
            for index in range(num):
                request = GenerationRequest(
                    request_id=f"{head.id}-{len(choices)}",
                    prompt_ids=prompt_ids,
                    sampling=replace(sampling, seed=choice_seed(sampling.seed, index)),
                    speculate=fields.speculation is None or fields.speculation.enabled is not False,
                    max_draft_nodes=max_draft_nodes(fields.speculation),
                    priority=wire_priority(fields.priority),
                    cache_salt=wire_salt(fields.cache_salt),
                    is_traced=is_traced(fields),
                    is_draft_only=claim.model.is_draft_only,
                )
                choices.append(
                    Choice(
                        request,
                        stops,
                        keeps_stop=bool(fields.include_stop_str_in_output),
                        skips_special=fields.skip_special_tokens is not False,
                        drops_answer=details.drops_answer,
                    )
                )
        return choices

    def _plan(
        self,
        fields: GenerationFields,
        choices: list[Choice],
        num_prompt_tokens: int,
        writer: AnswerWriter,
        arrived_s: float,
        details: TokenDetails,
        claim: Claim,
    ) -> AnswerPlan:
        return AnswerPlan(
            choices=claim.bind(choices, claim.model.require_info()),
            num_prompt_tokens=num_prompt_tokens,
            writer=writer,
            arrived_s=arrived_s,
            is_stream=bool(fields.stream),
            claim=claim,
            shows_tokens=details.shows_tokens,
            keep_alive_s=self._settings.keep_alive_s,
        )

    def _openai_chat_writer(self, head: AnswerHead, fields: ChatRequest) -> AnswerWriter:
        logprobs = ChatLogprobs(chat_details(fields), self._detokenizers)
        shape = ChatShape(logprobs, shows_reasoning=fields.include_reasoning is not False)
        return OpenAIWriter(head, shape, **_usage_options(fields))


def _usage_options(fields: GenerationFields) -> dict[str, bool]:
    options = fields.stream_options
    return {
        "include_usage": options is not None and bool(options.include_usage),
        "continuous_usage": options is not None and bool(options.continuous_usage_stats),
    }
