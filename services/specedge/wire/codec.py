"""Messages to protobuf and back. What enters is checked here, once; everything behind may trust it.

A malformed message is a ProtocolError, a bad value of the user's an InvalidRequest; both name the value and the limit.
Draft nodes, whose numbers run through a whole stream, have a module of their own: `draft_codec`.
"""

from specedge.errors import InvalidRequest, ProtocolError
from specedge.grammar.spec import GRAMMAR_KINDS, GrammarSpec
from specedge.sampling import SamplingParams
from specedge.verification.v1 import verification_pb2 as pb
from specedge.wire.logprob_codec import decode_logprobs, encode_logprobs
from specedge.wire.messages import (
    PROTOCOL_VERSION,
    DefaultSampling,
    Draining,
    FinishReason,
    OpenSession,
    ServerInfo,
    SessionOpened,
    System,
    Verdict,
    check_received_ids,
)

MAX_NAME_CHARS = 256
"""Longest request id, drafter id, fingerprint or name of a field."""
MAX_SALT_BYTES = 64
MAX_UINT32 = 2**32 - 1

_SYSTEMS: dict[System, pb.DraftSystem.ValueType] = {
    "specedge": pb.DRAFT_SYSTEM_SPECEDGE,
    "autoregressive": pb.DRAFT_SYSTEM_AUTOREGRESSIVE,
}
_SYSTEM_NAMES: dict[int, System] = {
    pb.DRAFT_SYSTEM_UNSPECIFIED: "specedge",
    **{value: name for name, value in _SYSTEMS.items()},
}
_FINISH_REASONS: dict[FinishReason, pb.FinishReason.ValueType] = {
    "": pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}
_FINISH_NAMES: dict[int, FinishReason] = {value: name for name, value in _FINISH_REASONS.items()}
_GRAMMAR_KINDS = {kind: pb.GrammarKind.Value(f"GRAMMAR_KIND_{kind.upper()}") for kind in GRAMMAR_KINDS}
_GRAMMAR_NAMES = {value: kind for kind, value in _GRAMMAR_KINDS.items()}


def encode_open(message: OpenSession) -> pb.GenerateRequest:
    """The first message of a stream."""
    sampling = message.sampling
    request = pb.GenerateRequest(
        open=pb.OpenSession(
            protocol_version=PROTOCOL_VERSION,
            request_id=message.request_id,
            sampling=pb.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                repetition_penalty=sampling.repetition_penalty,
                logit_bias_ids=[token_id for token_id, _ in sampling.logit_bias],
                logit_bias_values=[bias for _, bias in sampling.logit_bias],
                seed=sampling.seed,
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                ignore_eos=sampling.ignore_eos,
                stop_token_ids=sampling.stop_token_ids,
                num_logprobs=sampling.num_logprobs,
                num_prompt_logprobs=sampling.num_prompt_logprobs,
                bad_words=[pb.TokenSequence(token_ids=word) for word in sampling.bad_words],
                allowed_token_ids=sampling.allowed_token_ids,
                grammar=_encode_grammar(sampling.grammar),
            ),
            tokenizer_fingerprint=message.tokenizer_fingerprint,
            drafter_id=message.drafter_id,
            system=_SYSTEMS[message.system],
            priority=message.priority,
            cache_salt=message.cache_salt,
            takes_padding=message.takes_padding,
            takes_draining=message.takes_draining,
            target_model=message.target_model,
            tells_progress=message.tells_progress,
            round_trip_us=_micros(message.round_trip_s),
        )
    )
    # Filled in place: protobuf would copy what is handed to it inside a message.
    request.open.prompt_ids.extend(message.prompt_ids)
    request.open.committed_ids.extend(message.committed_ids)
    return request


def _micros(seconds: float | None) -> int:
    """0 for None alone."""
    return 0 if seconds is None else max(1, min(round(1e6 * seconds), MAX_UINT32))


def decode_open(request: pb.GenerateRequest, vocab_size: int) -> OpenSession:
    """Reads the first message of a stream.

    Raises ProtocolError for a message of another kind or version, InvalidRequest for a bad value inside it.
    """
    kind = request.WhichOneof("message")
    if kind != "open":
        raise ProtocolError(f"the first message of a stream must be OpenSession, not {kind or 'an empty message'}")
    message = request.open
    if message.protocol_version != PROTOCOL_VERSION:
        raise ProtocolError(f"protocol version {message.protocol_version} is not served, only {PROTOCOL_VERSION}")
    if message.system not in _SYSTEM_NAMES:
        raise ProtocolError(f"system {message.system} is not one of {sorted(_SYSTEM_NAMES)}")
    for name in ("request_id", "drafter_id", "tokenizer_fingerprint"):
        num_chars = len(getattr(message, name))
        if num_chars > MAX_NAME_CHARS:
            raise InvalidRequest(f"{name} has {num_chars} characters, at most {MAX_NAME_CHARS} are allowed", name)
    if len(message.cache_salt) > MAX_SALT_BYTES:
        num_bytes = len(message.cache_salt)
        raise InvalidRequest(f"cache_salt has {num_bytes} bytes, at most {MAX_SALT_BYTES} are allowed", "cache_salt")
    prompt_ids = tuple(message.prompt_ids[:])  # a slice is read faster than an iterator
    if not prompt_ids:
        raise InvalidRequest("prompt_ids is empty, at least 1 token is needed", "prompt_ids")
    committed_ids = tuple(message.committed_ids[:])
    check_received_ids(prompt_ids, vocab_size, "prompt_ids")
    check_received_ids(committed_ids, vocab_size, "committed_ids")
    return OpenSession(
        request_id=message.request_id,
        prompt_ids=prompt_ids,
        committed_ids=committed_ids,
        sampling=_decode_sampling(message.sampling, vocab_size),
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        drafter_id=message.drafter_id,
        system=_SYSTEM_NAMES[message.system],
        priority=message.priority,
        cache_salt=message.cache_salt,
        takes_padding=message.takes_padding,
        takes_draining=message.takes_draining,
        target_model=message.target_model,
        tells_progress=message.tells_progress,
        round_trip_s=1e-6 * message.round_trip_us if message.round_trip_us else None,
    )


def _decode_sampling(message: pb.SamplingParams, vocab_size: int) -> SamplingParams:
    num_ids, num_values = len(message.logit_bias_ids), len(message.logit_bias_values)
    if num_ids != num_values:
        raise ProtocolError(f"logit_bias_ids has {num_ids} entries but logit_bias_values has {num_values}")
    sampling = SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        logit_bias=tuple(zip(message.logit_bias_ids, message.logit_bias_values, strict=True)),
        seed=message.seed,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else 16,
        min_tokens=message.min_tokens,
        ignore_eos=message.ignore_eos,
        stop_token_ids=tuple(message.stop_token_ids),
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        num_prompt_logprobs=message.num_prompt_logprobs if message.HasField("num_prompt_logprobs") else None,
        bad_words=tuple(tuple(word.token_ids) for word in message.bad_words),
        allowed_token_ids=tuple(message.allowed_token_ids),
        grammar=_decode_grammar(message.grammar) if message.HasField("grammar") else None,
    )
    sampling.validate(vocab_size)
    return sampling


def _encode_grammar(grammar: GrammarSpec | None) -> pb.Grammar | None:
    if grammar is None:
        return None
    return pb.Grammar(kind=_GRAMMAR_KINDS[grammar.kind], source=grammar.source, param=grammar.asked_in)


def _decode_grammar(message: pb.Grammar) -> GrammarSpec:
    kind = _GRAMMAR_NAMES.get(message.kind)
    if kind is None:
        raise ProtocolError(f"grammar kind {message.kind} is not one of {sorted(_GRAMMAR_NAMES)}")
    if len(message.param) > MAX_NAME_CHARS:
        raise ProtocolError(f"a grammar's param has {len(message.param)} characters; it may have {MAX_NAME_CHARS}")
    return GrammarSpec(kind, message.source, message.param)


def encode_response(message: SessionOpened | Verdict | Draining) -> pb.GenerateResponse:
    """Any response of a stream."""
    if isinstance(message, Draining):
        return pb.GenerateResponse(draining=pb.Draining())
    return _encode_opened(message) if isinstance(message, SessionOpened) else _encode_verdict(message)


def _encode_opened(message: SessionOpened) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        opened=pb.SessionOpened(
            num_cached_tokens=message.num_cached_tokens,
            max_live_nodes=message.max_live_nodes,
            max_nodes_per_message=message.max_nodes_per_message,
        )
    )
    if message.prompt_logprobs:
        encode_logprobs(response.opened.prompt_logprobs, message.prompt_logprobs)
    return response


def _encode_verdict(message: Verdict) -> pb.GenerateResponse:
    response = pb.GenerateResponse()
    verdict = response.verdict
    verdict.first_position = message.first_position
    verdict.token_ids.extend(message.token_ids)
    verdict.finish_reason = _FINISH_REASONS[message.finish_reason]
    verdict.queue_us = min(message.queue_us, MAX_UINT32)
    verdict.step_us = min(message.step_us, MAX_UINT32)
    verdict.num_nodes_verified = message.num_nodes_verified
    verdict.num_accepted = message.num_accepted
    verdict.lead_tokens = message.lead_tokens
    if message.logprobs:
        encode_logprobs(verdict.logprobs, message.logprobs)
    return response


def decode_response(response: pb.GenerateResponse, vocab_size: int) -> SessionOpened | Verdict | Draining:
    """Reads any response of a stream; raises ProtocolError when it is malformed."""
    kind = response.WhichOneof("message")
    if kind == "opened":
        opened = response.opened
        return SessionOpened(
            opened.num_cached_tokens,
            opened.max_live_nodes,
            opened.max_nodes_per_message,
            decode_logprobs(opened.prompt_logprobs, vocab_size) if opened.HasField("prompt_logprobs") else (),
        )
    if kind == "draining":
        return Draining()
    if kind != "verdict":
        raise ProtocolError("a response carries neither SessionOpened nor Verdict nor Draining")
    verdict = response.verdict
    finish_reason = _FINISH_NAMES.get(verdict.finish_reason)
    if finish_reason is None:
        raise ProtocolError(f"finish_reason {verdict.finish_reason} is not one of {sorted(_FINISH_NAMES)}")
    token_ids = tuple(verdict.token_ids[:])
    if not token_ids and not finish_reason:
        raise ProtocolError("a verdict commits no token and does not end the answer")
    check_received_ids(token_ids, vocab_size, "token_ids", ProtocolError)
    return Verdict(
        first_position=verdict.first_position,
        token_ids=token_ids,
        finish_reason=finish_reason,
        queue_us=verdict.queue_us,
        step_us=verdict.step_us,
        num_nodes_verified=verdict.num_nodes_verified,
        num_accepted=verdict.num_accepted,
        lead_tokens=verdict.lead_tokens,
        logprobs=decode_logprobs(verdict.logprobs, vocab_size) if verdict.HasField("logprobs") else (),
    )


def encode_server_info(info: ServerInfo) -> pb.GetServerInfoResponse:
    """The answer to GetServerInfo."""
    defaults = info.default_sampling
    return pb.GetServerInfoResponse(
        protocol_version=info.protocol_version,
        capabilities=info.capabilities,
        target_model=info.target_model,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocab_size=info.vocab_size,
        max_len=info.max_len,
        max_live_nodes=info.max_live_nodes,
        max_nodes_per_message=info.max_nodes_per_message,
        eos_ids=info.eos_ids,
        default_sampling=pb.DefaultSampling(
            temperature=defaults.temperature,
            top_p=defaults.top_p,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
        ),
        server_version=info.server_version,
        max_batch_size=info.max_batch_size,
    )


def decode_server_info(message: pb.GetServerInfoResponse) -> ServerInfo:
    """Reads the answer to GetServerInfo; raises ProtocolError for another version or limits that cannot be."""
    if message.protocol_version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the verifier speaks protocol version {message.protocol_version}, this edge only {PROTOCOL_VERSION}"
        )
    for name in ("vocab_size", "max_len", "max_nodes_per_message"):
        if getattr(message, name) < 1:
            raise ProtocolError(f"the verifier's {name} is {getattr(message, name)}, at least 1 is needed")
    defaults = message.default_sampling
    return ServerInfo(
        target_model=message.target_model,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocab_size=message.vocab_size,
        max_len=message.max_len,
        max_live_nodes=message.max_live_nodes,
        eos_ids=tuple(message.eos_ids),
        max_batch_size=message.max_batch_size,
        server_version=message.server_version,
        max_nodes_per_message=message.max_nodes_per_message,
        default_sampling=DefaultSampling(
            temperature=defaults.temperature if defaults.HasField("temperature") else 1.0,
            top_p=defaults.top_p if defaults.HasField("top_p") else 1.0,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty if defaults.HasField("repetition_penalty") else 1.0,
        ),
        protocol_version=message.protocol_version,
        capabilities=tuple(message.capabilities),
    )
