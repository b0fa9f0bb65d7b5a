"""OpenAssistant conversations: message trees, or single messages that name their parents."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from specedge_bench.prompts.dataset import Message, Prompt
from specedge_bench.prompts.errors import MalformedRow
from specedge_bench.prompts.formats import role_of, text_of, until_last_user
from specedge_bench.prompts.rows import Row

_UNRANKED = 1_000_000  # after every ranked reply


def read_oasst(name: str, rows: Iterable[Row]) -> Iterator[Prompt]:
    """One prompt for each tree: its best-ranked thread up to the last prompter's turn.

    A row is a tree (`prompt` with nested `replies`), the root message of one, or a message with `parent_id`. Messages
    of one tree may lie anywhere in the file, so such files are read to their end first.
    """
    roots: list[tuple[Row, dict[str, Any]]] = []
    children: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not isinstance(row.value, dict):
            raise MalformedRow(row.place, "not a JSON object with 'text' and 'role', or with 'prompt'")
        if isinstance(row.value.get("prompt"), dict):
            root = row.value["prompt"]
            yield from _prompt(name, row, row.value.get("message_tree_id"), root, _nested(row, root))
            continue
        text_of(row, "text")
        role_of(row, row.value, "role")
        parent = row.value.get("parent_id")
        if parent:
            children.setdefault(str(parent), []).append(row.value)
        else:
            roots.append((row, row.value))
    for row, root in roots:
        replies = _nested(row, root) if root.get("replies") else _linked(row, root, children)
        yield from _prompt(name, row, root.get("message_id"), root, replies)


def _prompt(name: str, row: Row, given_id: object, root: Mapping[str, Any], thread: list[Message]) -> Iterator[Prompt]:
    messages = [] if root.get("deleted") else until_last_user(thread)
    if messages:
        yield Prompt(f"{name}-{given_id or row.number}", "chat", tuple(messages))


def _nested(row: Row, root: dict[str, Any]) -> list[Message]:
    thread: list[Message] = []
    message: dict[str, Any] | None = root
    while message is not None:
        thread.append(_message(row, message))
        replies = message.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise MalformedRow(row.place, "'replies' is not a list of messages")
        message = _best(replies)
    return thread


def _linked(row: Row, root: dict[str, Any], children: Mapping[str, list[dict[str, Any]]]) -> list[Message]:
    thread: list[Message] = []
    passed: set[str] = set()
    message: dict[str, Any] | None = root
    while message is not None:
        thread.append(_message(row, message))
        message_id = str(message.get("message_id"))
        if message_id in passed:
            raise MalformedRow(row.place, f"message {message_id!r} is its own ancestor")
        passed.add(message_id)
        message = _best(children.get(message_id, []))
    return thread


def _message(row: Row, message: dict[str, Any]) -> Message:
    return role_of(row, message, "role"), text_of(Row(row.number, row.place, message), "text")


def _best(replies: list[dict[str, Any]]) -> dict[str, Any] | None:
    present = [reply for reply in replies if not reply.get("deleted")]
    return min(present, key=_rank, default=None)  # the first of equals


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else _UNRANKED
