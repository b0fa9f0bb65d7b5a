"""Prompts of the bench: the project's own set, selection, and the formats of public sets."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specedge_bench.prompts.dataset import Prompt, Selection, fit
from specedge_bench.prompts.errors import InvalidSelection, MalformedRow
from specedge_bench.prompts.formats import NUM_CONTINUED_WORDS
from specedge_bench.prompts.loaders import load_prompts

IN_ORDER = Selection(seed=None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | list[Any]], Path]:
    def write_file(name: str, content: str | list[Any]) -> Path:
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write_file


def numbered(count: int) -> list[Prompt]:
    return [Prompt(str(index), "continuation", text="x" * (index + 1)) for index in range(count)]


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


# The project's own prompts


def test_own_set_is_large_distinct_and_mixed() -> None:
    prompts = load_prompts(selection=IN_ORDER)
    assert len(prompts) >= 120
    assert len(set(ids(prompts))) == len(prompts)
    assert len({prompt.messages or prompt.text for prompt in prompts}) == len(prompts)
    assert sum(prompt.kind == "continuation" for prompt in prompts) * 3 == len(prompts)


def test_any_beginning_of_the_own_set_has_the_same_mix() -> None:
    first = load_prompts(selection=Selection(max_request_num=24, seed=None))
    assert sum(prompt.kind == "continuation" for prompt in first) == 8
    assert any(len(str(prompt.body)) > 1200 for prompt in first)


def test_own_set_has_long_prompts_that_share_their_beginning() -> None:
    long = [str(prompt.body) for prompt in load_prompts(selection=IN_ORDER) if len(str(prompt.body)) > 1200]
    beginnings = {text[:1000] for text in long}
    assert len(long) >= 20
    assert len(beginnings) <= len(long) / 2


def test_body_is_what_the_endpoint_takes() -> None:
    chat = Prompt("a", "chat", (("system", "s"), ("user", "u")))
    assert (chat.path, chat.body) == (
        "/v1/chat/completions",
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    )
    text = Prompt("b", "continuation", text="Once")
    assert (text.path, text.body) == ("/v1/completions", {"prompt": "Once"})


# Selection


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(seed=None), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Selection(0, -1, -1, None), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Selection(req_offset=7, seed=None), [7, 8, 9]),
        (Selection(sample_req_cnt=4, seed=None), [0, 4, 8]),
        (Selection(req_offset=1, sample_req_cnt=4, seed=None), [1, 5, 9]),
        (Selection(req_offset=1, sample_req_cnt=4, max_request_num=2, seed=None), [1, 5]),
        (Selection(max_request_num=3, seed=None), [0, 1, 2]),
        (Selection(max_request_num=1, seed=None), [0]),
        (Selection(max_request_num=99, seed=None), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_selection_takes_every_nth_after_the_offset(selection: Selection, expected: list[int]) -> None:
    assert ids(selection.pick(numbered(10))) == [str(index) for index in expected]


def test_seed_decides_the_order_alone() -> None:
    first, again, other = (ids(Selection(2, 3, 20, seed).pick(numbered(100))) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == sorted(str(index) for index in range(2, 62, 3))


def test_selection_reads_no_further_than_it_must(write: Callable[..., Path]) -> None:
    path = write("c4.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": "three"}\nbroken\n')
    assert len(load_prompts("c4", path, selection=Selection(1, 1, 2))) == 2
    with pytest.raises(MalformedRow, match="line 4: not JSON"):
        load_prompts("c4", path, selection=Selection(1, 1, 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1, None, None), "req_offset is -1; it must be at least 0"),
        ((0, 0, None), "sample_req_cnt is 0; it must be at least 1, or -1 for all"),
        ((0, None, -2), "max_request_num is -2; it must be at least 1, or -1 for all"),
    ],
)
def test_selection_refuses_numbers_out_of_range(values: tuple[int, Any, Any], message: str) -> None:
    with pytest.raises(InvalidSelection, match=message):
        Selection(*values)


def test_fit_skips_and_counts_what_is_too_long() -> None:
    kept, num_skipped = fit(numbered(5), lambda prompt: len(prompt.text), 3)
    assert (ids(kept), num_skipped) == (["0", "1", "2"], 2)
    assert fit([], lambda prompt: 1, 0) == ([], 0)


# Formats


@pytest.mark.parametrize("name", ["mtbench", "specbench"])
def test_questions_send_their_first_turn(name: str, write: Callable[..., Path]) -> None:
    path = write("question.jsonl", [{"question_id": 81, "turns": ["Why?", "And then?"]}, {"turns": ["How?"]}])
    assert load_prompts(name, path, selection=IN_ORDER) == [
        Prompt(f"{name}-81", "chat", (("user", "Why?"),)),
        Prompt(f"{name}-2", "chat", (("user", "How?"),)),
    ]


def test_gsm8k_sends_the_question(write: Callable[..., Path]) -> None:
    path = write("test.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    assert load_prompts("gsm8k", path) == [Prompt("gsm8k-1", "chat", (("user", "1 + 1?"),))]


def test_c4_is_json_lines_under_a_json_name_and_gzipped(write: Callable[..., Path]) -> None:
    long = " ".join(f"w{index}" for index in range(NUM_CONTINUED_WORDS + 50))
    path = write("c4-validation.00000-of-00008.json.gz", [{"text": "It  rained.\nA lot.", "url": "u"}, {"text": long}])
    short, cut = load_prompts("c4", path, selection=IN_ORDER)
    assert short == Prompt("c4-1", "continuation", text="It  rained.\nA lot.")
    assert cut.text.split() == long.split()[:NUM_CONTINUED_WORDS]


def test_texts_may_be_pairs_in_a_json_list(write: Callable[..., Path]) -> None:
    path = write("c4_prompts.json", '\n [["a", "First."],\n ["b", "Second."]]')
    assert [prompt.text for prompt in load_prompts("c4", path, selection=IN_ORDER)] == ["First.", "Second."]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "txt.gz"])
def test_wikitext_skips_headings_and_blank_rows(suffix: str, write: Callable[..., Path]) -> None:
    lines = [" ", " = Otters = ", "", " The otter swims . ", " = = Diet = = ", " It eats fish . "]
    is_text = suffix.startswith("txt")
    path = write(f"wiki.{suffix}", "\n".join(lines) if is_text else [{"text": line} for line in lines])
    texts = [prompt.text for prompt in load_prompts("wikitext", path, selection=IN_ORDER)]
    assert texts == ["The otter swims .", "It eats fish ."]


def test_sharegpt_keeps_replies_up_to_the_last_user_turn(write: Callable[..., Path]) -> None:
    def row(row_id: str, *turns: tuple[str, str]) -> dict[str, Any]:
        return {"id": row_id, "conversations": [{"from": role, "value": value} for role, value in turns]}

    replied = row("a", ("system", "s"), ("human", "1"), ("gpt", "2"), ("human", "3"), ("gpt", "4"))
    unreplied = row("b", ("human", "1"), ("human", "2"))
    headless = row("c", ("gpt", "0"), ("human", "1"), ("gpt", "2"))
    path = write(
        "share.json", json.dumps([replied, unreplied, headless, row("d"), row("e", ("gpt", "only"))], indent=1)
    )
    assert load_prompts("sharegpt", path, selection=IN_ORDER) == [
        Prompt("sharegpt-a", "chat", (("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"))),
        Prompt("sharegpt-b", "chat", (("user", "1"),)),
        Prompt("sharegpt-c", "chat", (("user", "1"),)),
    ]


OASST_THREAD = (("user", "q"), ("assistant", "best"), ("user", "more"))


def test_oasst_trees_follow_the_best_ranked_reply(write: Callable[..., Path]) -> None:
    more = {"text": "more", "role": "prompter", "replies": []}
    replies = [
        {"text": "gone", "role": "assistant", "rank": 0, "deleted": True},
        {"text": "worse", "role": "assistant", "rank": 2},
        {"text": "best", "role": "assistant", "rank": 1, "replies": [more]},
        {"text": "unranked", "role": "assistant"},
    ]
    tree = {"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": replies}}
    path = write("trees.jsonl.gz", [tree])
    assert load_prompts("oasst", path) == [Prompt("oasst-t", "chat", OASST_THREAD)]


def test_oasst_messages_are_joined_whatever_their_order(write: Callable[..., Path]) -> None:
    def row(message_id: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
        return {"message_id": message_id, "parent_id": parent, "role": role, "text": text, "rank": rank}

    rows = [
        row("m4", "m3", "prompter", "more"),
        row("m2", "m1", "assistant", "worse", 1),
        row("m1", None, "prompter", "q"),
        row("m3", "m1", "assistant", "best", 0),
        row("n1", None, "prompter", "alone"),
        {**row("d1", None, "prompter", "gone"), "deleted": True},
    ]
    assert load_prompts("oasst", write("messages.jsonl", rows), selection=IN_ORDER) == [
        Prompt("oasst-m1", "chat", OASST_THREAD),
        Prompt("oasst-n1", "chat", (("user", "alone"),)),
    ]


def test_oasst_refuses_a_circle(write: Callable[..., Path]) -> None:
    rows = [
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "q"},
        {"message_id": "a", "parent_id": "a", "role": "assistant", "text": "r"},
    ]
    with pytest.raises(MalformedRow, match="'a' is its own ancestor"):
        load_prompts("oasst", write("circle.jsonl", rows))


def test_repeated_ids_of_public_sets_are_numbered(write: Callable[..., Path]) -> None:
    path = write("q.jsonl", [{"question_id": 1, "turns": ["a"]}, {"question_id": 1, "turns": ["b"]}])
    assert ids(load_prompts("mtbench", path, selection=IN_ORDER)) == ["mtbench-1", "mtbench-1#2"]


def test_own_format_reads_other_files(write: Callable[..., Path]) -> None:
    chat = {"id": "x", "messages": [{"role": "user", "content": "hi"}]}
    path = write("mine.jsonl", "\ufeff" + json.dumps(chat) + "\n\n" + json.dumps({"id": "y", "text": "Once "}))
    assert load_prompts("own", path, selection=IN_ORDER) == [
        Prompt("x", "chat", (("user", "hi"),)),
        Prompt("y", "continuation", text="Once "),
    ]
