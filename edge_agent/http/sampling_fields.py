"""Request fields to sampling parameters: names mapped, defaults filled in, lengths fitted to the context."""

import secrets
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, TypeVar

from edge_agent.http.errors import ContextLengthExceeded
from edge_agent.http.schema import GenerationFields, Speculation, shown
from edge_agent.http.settings import HttpSettings
from specedge.errors import InvalidRequest
from specedge.sampling import SamplingParams
from specedge.wire.messages import ServerInfo

MAX_CHOICES: Final = 8
MAX_DRAFT_NODES: Final = 4096
MAX_PRIORITY: Final = 2**31 - 1
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 1000
_SEED_MODULUS: Final = 2**64

T = TypeVar("T")


def random_seed() -> int:
    """A fresh seed."""
    return secrets.randbits(63)


def build_sampling(
    fields: GenerationFields,
    max_tokens: int,
    info: ServerInfo,
    settings: HttpSettings,
    draw_seed: Callable[[], int] = random_seed,
) -> SamplingParams:
    """The first choice's parameters; fields left out take the operator's setting, else the target's own default.

    Where neither names a seed, `draw_seed` does.

    Values that are out of range are refused by `SamplingParams.validate`, once the parameters are complete.

    Raises:
        InvalidRequest: a value has no meaning as a parameter; names field and value.
    """
    default = info.default_sampling
    seed = _or(fields.seed, settings.seed)
    default_temperature = default.temperature if settings.temperature is None else settings.temperature
    top_k = _or(fields.top_k, default.top_k)
    return SamplingParams(
        temperature=_or(fields.temperature, default_temperature),
        top_p=_or(fields.top_p, default.top_p),
        top_k=0 if top_k == -1 else top_k,
        min_p=_or(fields.min_p, default.min_p),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, default.repetition_penalty),
        logit_bias=_logit_bias(fields.logit_bias),
        seed=draw_seed() if seed is None else seed % _SEED_MODULUS,  # some clients draw negative ones
        max_tokens=max_tokens,
        min_tokens=_or(fields.min_tokens, 0),
        ignore_eos=bool(fields.ignore_eos),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        allowed_token_ids=_allowed_token_ids(fields.allowed_token_ids),
    )


def choice_seed(seed: int, choice: int) -> int:
    """Seed of a prompt's choice-th answer."""
    return (seed + choice) % _SEED_MODULUS


def num_choices(fields: GenerationFields) -> int:
    """`n`, checked."""
    num = _or(fields.n, 1)
    if not 1 <= num <= MAX_CHOICES:
        raise InvalidRequest(f"n is {num}; it must be between 1 and {MAX_CHOICES}", param="n")
    return num


def wire_priority(priority: int | None) -> int:
    """A session's priority, of which higher goes first, from a request's, of which lower does."""
    value = _or(priority, 0)
    if not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        message = f"priority is {value}; it must be between {-MAX_PRIORITY} and {MAX_PRIORITY}"
        raise InvalidRequest(message, param="priority")
    return -value


def wire_salt(salt: str | None) -> bytes:
    """What keeps a request's prefixes apart on the verifier; empty where it names no salt."""
    if salt is None:
        return b""
    if not salt:
        raise InvalidRequest("cache_salt is empty; it must have at least 1 character", param="cache_salt")
    return sha256(salt.encode(errors="surrogatepass")).digest()


def max_draft_nodes(speculation: Speculation | None) -> int | None:
    """The request's own bound on live draft nodes, checked; None where it names none."""
    budget = None if speculation is None else speculation.budget
    if budget is not None and not 1 <= budget <= MAX_DRAFT_NODES:
        message = f"speculation.budget is {budget}; it must be between 1 and {MAX_DRAFT_NODES}"
        raise InvalidRequest(message, param="speculation.budget")
    return budget


def is_traced(fields: GenerationFields) -> bool:
    """Whether the chunks tell about speculation, checked: an answer in one piece has none."""
    is_wanted = fields.speculation is not None and bool(fields.speculation.trace)
    if is_wanted and not fields.stream:
        message = "speculation.trace is true, but stream is not: only the chunks of a stream have a trace"
        raise InvalidRequest(message, param="speculation.trace")
    return is_wanted


def refuse_trace(payload: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a trace where answers have no place for it."""
    speculation = payload.get("speculation")
    if isinstance(speculation, dict) and speculation.get("trace"):
        message = "speculation.trace is asked for, which only streams of /v1/chat/completions and /v1/completions have"
        raise InvalidRequest(message, param="speculation.trace")


def stop_strings(value: Any) -> tuple[str, ...]:
    """`stop` in any of its forms, checked."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise InvalidRequest(f"stop is {shown(value)}; it must be a string or a list of strings", param="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(stops)} strings; it may have at most {MAX_STOPS}", param="stop")
    for index, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise InvalidRequest(f"stop[{index}] is {shown(stop)}; it must be a string", param="stop")
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            message = f"stop[{index}] has {len(stop)} characters; it must have 1 to {MAX_STOP_CHARS}"
            raise InvalidRequest(message, param="stop")
    return tuple(stops)


def fit_answer(
    num_prompt_tokens: int, asked: int | None, default: int | None, max_len: int, *, asked_in: str, prompt_in: str
) -> int:
    """The most tokens the answer may have.

    Args:
        num_prompt_tokens: length of the prompt.
        asked: what the client wants, None where it named nothing.
        default: what it then gets if the context has room for it, None for all the room there is.
        max_len: the target's context in tokens.
        asked_in: field that holds `asked`.
        prompt_in: field that holds the prompt.

    Raises:
        ContextLengthExceeded: prompt, or prompt and answer, do not fit; names the numbers.
    """
    context = f"this model's maximum context length is {max_len} tokens"
    room = max_len - num_prompt_tokens
    if room < 1:
        message = f"{context}, but the prompt has {num_prompt_tokens} and leaves no room for an answer"
        raise ContextLengthExceeded(message, param=prompt_in)
    if asked is None:
        return room if default is None else min(default, room)
    if asked < 1:
        raise InvalidRequest(f"{asked_in} is {asked}; it must be at least 1", param=asked_in)
    if asked > room:
        wanted = (
            f"{num_prompt_tokens + asked} were asked for: {num_prompt_tokens} in the prompt and {asked} in {asked_in}"
        )
        raise ContextLengthExceeded(f"{context}, but {wanted}", param=asked_in)
    return asked


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _allowed_token_ids(token_ids: list[int] | None) -> tuple[int, ...]:
    if token_ids is not None and not token_ids:
        raise InvalidRequest("allowed_token_ids is empty; it must have at least 1 id", param="allowed_token_ids")
    return tuple(token_ids or ())


def _logit_bias(entries: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, bias in (entries or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 20):
            raise InvalidRequest(f"logit_bias has the key {shown(key)}; keys must be token ids", param="logit_bias")
        pairs.append((int(key), bias))
    return tuple(pairs)
