"""Rows of each data set's published file format to prompts.

A format turns rows into prompts one by one and skips rows that have nothing to send (headings, conversations without a
user's turn). A conversation with an assistant's replies is sent up to its last user's turn; without them only its first
turn is, since the replies that its later turns speak of are not there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from specedge_bench.prompts.dataset import Message, Prompt
from specedge_bench.prompts.errors import MalformedRow
from specedge_bench.prompts.rows import Row

Format = Callable[[str, Iterable[Row]], Iterator[Prompt]]

NUM_CONTINUED_WORDS = 128  # of a text set's row; the rest would be the answer

_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_own(name: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """This project's format: `id`, and either `messages` (role, content) or the `text` to go on from."""
    seen: set[str] = set()
    for row in rows:
        prompt_id = text_of(row, "id")
        if prompt_id in seen:
            raise MalformedRow(row.place, f"id {prompt_id!r} was used before; every prompt must have its own")
        seen.add(prompt_id)
        if "text" in row.value:
            yield Prompt(prompt_id, "continuation", text=text_of(row, "text"))
            continue
        messages = tuple(turns(row, "messages", "role", "content"))
        if not messages or messages[-1][0] != "user":
            raise MalformedRow(row.place, "the last of its messages must be the user's")
        yield Prompt(prompt_id, "chat", messages)


def read_questions(name: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """MT-bench and Spec-Bench `question.jsonl`: `turns`, of which the first is sent."""
    for row in rows:
        value = field(row, "turns", list, "a list of texts")
        if not value or not _is_text(value[0]):
            raise MalformedRow(row.place, "the first of its turns must be a text")
        yield _chat(name, row, "question_id", [("user", value[0])])


def read_gsm8k(name: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """GSM8K: `question`."""
    for row in rows:
        yield _chat(name, row, "id", [("user", text_of(row, "question"))])


def read_texts(name: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """C4 and WikiText: `text`, lines of a text file, or [id, text] pairs; their first words are continued."""
    for row in rows:
        value = row.value
        if isinstance(value, list) and len(value) == 2:
            value = value[1]
        text = value if isinstance(value, str) else field(row, "text", str, "a text")
        _check_encodable(row, text)
        if not text.strip() or _is_heading(text.strip()):
            continue
        words = text.split(maxsplit=NUM_CONTINUED_WORDS)
        kept = text.strip() if len(words) <= NUM_CONTINUED_WORDS else " ".join(words[:NUM_CONTINUED_WORDS])
        yield Prompt(f"{name}-{row.number}", "continuation", text=kept)


def read_sharegpt(name: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """ShareGPT: `conversations` of `from` and `value`."""
    for row in rows:
        messages = until_last_user(turns(row, "conversations", "from", "value"))
        if messages:
            yield _chat(name, row, "id", messages)


def turns(row: Row, key: str, role_key: str, content_key: str) -> Iterator[Message]:
    """The messages of a row in the roles that chat templates know; empty ones are none."""
    for index, turn in enumerate(field(row, key, list, "a list of messages")):
        if not isinstance(turn, dict) or not isinstance(turn.get(content_key), str):
            raise MalformedRow(row.place, f"{key}[{index}] has no text under {content_key!r}")
        role = role_of(row, turn, role_key)
        _check_encodable(row, turn[content_key])
        if turn[content_key].strip():
            yield role, turn[content_key]


def role_of(row: Row, message: Mapping[str, Any], role_key: str) -> str:
    """A message's role in the words of chat templates."""
    role = message.get(role_key)
    if not isinstance(role, str) or role.lower() not in _ROLES:
        known = ", ".join(_ROLES)
        raise MalformedRow(row.place, f"{role_key!r} is {role!r}; known roles are {known}")
    return _ROLES[role.lower()]


def until_last_user(messages: Iterable[Message]) -> list[Message]:
    """The conversation from its beginning to the last user's turn; up to the first if nobody replied."""
    kept = list(messages)
    while kept and kept[-1][0] != "user":
        kept.pop()
    first = next((index for index, (role, _) in enumerate(kept) if role == "user"), 0)
    opening = [message for message in kept[:first] if message[0] == "system"]
    rest = kept[first:]
    if all(role != "assistant" for role, _ in rest):
        rest = rest[:1]
    return opening + rest


def field(row: Row, key: str, kind: type, description: str) -> Any:
    """The row's value under `key`, which must be of the kind described."""
    if not isinstance(row.value, dict):
        raise MalformedRow(row.place, f"not a JSON object with {key!r}")
    if key not in row.value:
        has = ", ".join(map(repr, list(row.value)[:8])) or "nothing"
        raise MalformedRow(row.place, f"has no {key!r}; it has {has}")
    value = row.value[key]
    if not isinstance(value, kind):
        raise MalformedRow(row.place, f"{key!r} is not {description}")
    return value


def text_of(row: Row, key: str) -> str:
    """The row's text under `key`, which must not be blank."""
    text = field(row, key, str, "a text")
    if not _is_text(text):
        raise MalformedRow(row.place, f"{key!r} is empty")
    _check_encodable(row, text)
    return str(text)


def _chat(name: str, row: Row, id_key: str, messages: list[Message]) -> Prompt:
    for _, content in messages:
        _check_encodable(row, content)
    given = row.value.get(id_key)
    return Prompt(f"{name}-{row.number if given is None else given}", "chat", tuple(messages))


def _check_encodable(row: Row, text: str) -> None:
    # JSON can spell half a surrogate pair, which no request can carry.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedRow(row.place, f"has half a surrogate pair at character {error.start} of a text") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_heading(text: str) -> bool:
    return text.startswith("= ") and text.endswith(" =")
