"""Requests that no client would send: known bodies with hostile fields, damaged JSON, and bytes that are none."""

import json
from copy import deepcopy
from random import Random
from typing import Any

from fuzz import values
from fuzz.inputs import JSON_TYPE, Post

ASKED = {"role": "user", "content": "Tell me a story."}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "system", "content": "Be brief."}, ASKED],
        "max_tokens": 3,
        "temperature": 1,
        "top_p": 0.9,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["\n"],
        "n": 1,
        "logit_bias": {"5": 1},
        "tools": [TOOL],
        "tool_choice": "none",
        "response_format": {"type": "text"},
    },
    "/v1/completions": {
        "prompt": "Once upon a time",
        "max_tokens": 3,
        "temperature": 0,
        "seed": 7,
        "echo": False,
        "logprobs": 1,
        "n": 1,
        "best_of": 1,
        "suffix": None,
        "presence_penalty": 0.5,
        "min_tokens": 0,
        "stop_token_ids": [7],
        "bad_words": ["cat"],
    },
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
        "max_output_tokens": 16,
        "stream": False,
        "instructions": "Be brief.",
        "text": {"format": {"type": "text"}},
        "metadata": {"a": "b"},
    },
    "/v1/messages": {
        "model": "specedge-demo",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "max_tokens": 3,
        "system": "Be brief.",
        "stop_sequences": ["x"],
        "stream": False,
    },
    "/v1/messages/count_tokens": {"model": "specedge-demo", "messages": [ASKED]},
    "/tokenize": {"prompt": "Hello", "add_special_tokens": True},
    "/detokenize": {"tokens": [5, 17, 400]},
}
FORMATS = (
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}},
    {"type": "regex", "regex": "("},
)
TYPES = (JSON_TYPE, "application/json; charset=utf-16", "text/plain", "multipart/form-data", "")
UNUSUAL = (
    "prediction",
    "guided_regex",
    "structured_outputs",
    "speculation",
    "chat_template_kwargs",
    "priority",
    "user",
)


def post(draw: Random) -> Post:
    """A request; `draw` decides all of it."""
    path = draw.choice(tuple(BODIES))
    body = deepcopy(BODIES[path])
    for name in draw.sample(sorted(body), draw.randrange(len(body))):
        if draw.random() < 0.5:
            del body[name]
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        _spoil(draw, body)
    if draw.random() < 0.02 and "response_format" in BODIES[path]:
        body["response_format"] = draw.choice(FORMATS)
    content = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = draw.random()
    if kind < 0.25:
        content = values.damaged(draw, content)
    elif kind < 0.3:
        content = draw.choice((b"", b"[]", b"null", b"1", b"[" * 5000, b'{"a":' * 3000, draw.randbytes(200)))
    return Post(path, content, JSON_TYPE if draw.random() < 0.97 else draw.choice(TYPES))


def _spoil(draw: Random, holder: Any) -> None:
    """Change one value of an object or a list, here or deeper."""
    keys = list(range(len(holder))) if isinstance(holder, list) else list(holder)
    if not keys or draw.random() < 0.1:
        if isinstance(holder, dict):
            holder[draw.choice(UNUSUAL) if draw.random() < 0.5 else values.text(draw)] = anything(draw)
        else:
            holder.append(anything(draw))
        return
    key = draw.choice(keys)
    if isinstance(holder[key], dict | list) and draw.random() < 0.6:
        _spoil(draw, holder[key])
    else:
        holder[key] = anything(draw)


def anything(draw: Random, depth: int = 0) -> Any:
    """Any JSON value, and the numbers that JSON does not have."""
    match draw.randrange(8 if depth < 3 else 6):
        case 0:
            return None
        case 1:
            return draw.random() < 0.5
        case 2 | 3:
            return values.integer(draw)
        case 4:
            return draw.choice(values.FLOATS)
        case 5:
            return values.text(draw)
        case 6:
            return [anything(draw, depth + 1) for _ in range(draw.choice((0, 1, 3, 20)))]
    return {values.text(draw): anything(draw, depth + 1) for _ in range(draw.choice((0, 1, 3)))}
