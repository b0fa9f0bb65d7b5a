"""Prompts of both endpoints: the forms they may have, the refusal of others by name, and the way to token ids."""

from typing import Any

import pytest
from http_support import ids, tokenizer

from edge_agent.http.errors import ContextLengthExceeded
from edge_agent.http.messages import normalise_messages
from edge_agent.http.prompts import PromptEncoder, check_prompt_ids, split_prompts
from edge_agent.http.schema import ChatRequest, parse_fields
from edge_agent.http.settings import HttpSettings
from specedge.errors import InvalidRequest

USER = [{"role": "user", "content": "hi"}]


def refusal(call: Any, *args: Any, **kwargs: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value


def test_messages_become_role_and_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert normalise_messages(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": "", "tool_calls": None, "refusal": None},
            {"role": "assistant", "content": None, "reasoning": "hm"},
            {"role": "assistant", "refusal": "no"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
        ]
    ) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "assistant", "content": "no"},
        {"role": "assistant", "content": "never"},
    ]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([*USER, {"role": "function", "content": "x"}], "messages[1].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "refusal": 5}], "messages[0].refusal"),
        ([{"role": "assistant", "content": [{"type": "refusal"}]}], "messages[0].content[0].refusal"),
    ],
)
def test_bad_messages_are_named(messages: Any, param: str) -> None:
    error = refusal(normalise_messages, messages)
    assert error.param == param
    assert param in str(error)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", ["hi"]),
        (["hi", "ho"], ["hi", "ho"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompt_forms(prompt: Any, expected: list[Any]) -> None:
    assert split_prompts(prompt, max_prompts=2) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (None, "prompt is null"),
        (5, "prompt is 5"),
        ([], "prompt is empty"),
        ([[]], "prompt[0] is empty"),
        (["a", 1], "prompt[1] is 1"),
        ([1, "a"], "prompt[1] is 'a'"),
        ([1, True], "prompt[1] is true"),
        ([True], "prompt[0] is true"),
        ([[1], "a"], "prompt[1] is 'a'"),
        ([[1], [1.5]], "prompt[1][0] is 1.5"),
        (["a", "b", "c"], "3 prompts; it may have at most 2"),
    ],
)
def test_bad_prompts_are_named(prompt: Any, expected: str) -> None:
    error = refusal(split_prompts, prompt, max_prompts=2)
    assert expected in str(error)
    assert error.param == "prompt"


def test_ids_outside_the_vocabulary_are_named() -> None:
    check_prompt_ids((0, 4095), 4096, "prompt")
    for bad in (4096, -1, 10**30):
        assert f"token 1 of prompt is {bad}" in str(refusal(check_prompt_ids, (5, bad), 4096, "prompt"))
    assert "prompt is empty" in str(refusal(check_prompt_ids, (), 4096, "prompt"))


async def encode_chat(messages: list[dict[str, str]], **fields: Any) -> str:
    """The conversation as the model sees it."""
    request = parse_fields(ChatRequest, {"messages": messages, **fields})
    encoder = PromptEncoder(tokenizer(), HttpSettings())
    return str(tokenizer().decode((await encoder.encode_chat(request, messages, max_len=1024)).token_ids))


async def test_chats_end_where_the_assistant_begins() -> None:
    assert await encode_chat(USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert await encode_chat(USER, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


async def test_a_final_assistant_message_can_be_continued() -> None:
    messages = [*USER, {"role": "assistant", "content": "Once upon"}]
    continued = await encode_chat(messages, continue_final_message=True)
    assert continued == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nOnce upon"
    with pytest.raises(InvalidRequest, match="both true"):
        await encode_chat(messages, continue_final_message=True, add_generation_prompt=True)


async def test_template_variables_reach_the_template_and_arguments_do_not() -> None:
    assert await encode_chat(USER, chat_template_kwargs={"enable_thinking": False}) == await encode_chat(USER)
    for name in ("tokenize", "chat_template", "add_generation_prompt", "return_tensors"):
        with pytest.raises(InvalidRequest, match=name) as caught:
            await encode_chat(USER, chat_template_kwargs={name: True})
        assert caught.value.param == "chat_template_kwargs"


async def test_the_effort_reaches_the_template_and_turns_thinking_on_or_off() -> None:
    shows = tokenizer().__class__.from_pretrained(tokenizer().name_or_path)
    shows.chat_template = "{{ reasoning_effort }} {{ enable_thinking }}"
    encoder = PromptEncoder(shows, HttpSettings())

    async def rendered(**fields: Any) -> str:
        request = parse_fields(ChatRequest, {"messages": USER, **fields})
        return (await encoder.encode_chat(request, USER, max_len=1024)).text

    assert await rendered() == " "
    assert await rendered(reasoning_effort="none") == "none False"
    assert await rendered(reasoning_effort="high") == "high True"
    assert await rendered(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}) == "low False"
    with pytest.raises(InvalidRequest, match="'huge'") as caught:
        await rendered(reasoning_effort="huge")
    assert caught.value.param == "reasoning_effort"


async def test_what_a_template_says_about_its_messages_is_passed_on() -> None:
    picky = tokenizer().__class__.from_pretrained(tokenizer().name_or_path)
    picky.chat_template = "{{ raise_exception('roles must alternate') }}"
    request = parse_fields(ChatRequest, {"messages": USER})
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        await PromptEncoder(picky, HttpSettings()).encode_chat(request, USER, max_len=1024)
    assert caught.value.param == "messages"


async def test_texts_become_ids() -> None:
    encoder = PromptEncoder(tokenizer(), HttpSettings())
    assert list(await encoder.encode_text("Once upon", 1024, add_special_tokens=True)) == ids("Once upon")


async def test_oversized_texts_are_refused_before_they_are_tokenised() -> None:
    class NeverCalled:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("tokenised")

        apply_chat_template = __call__

    encoder = PromptEncoder(NeverCalled(), HttpSettings(max_chars_per_token=16))  # type: ignore[arg-type]
    with pytest.raises(ContextLengthExceeded, match="prompt has 1601 characters; at most 1600 are taken") as caught:
        await encoder.encode_text("x" * 1601, 100, add_special_tokens=True)
    assert "100 tokens" in str(caught.value)
    messages = [{"role": "user", "content": "x" * 1601}]
    with pytest.raises(ContextLengthExceeded, match="messages has 1601 characters"):
        await encoder.encode_chat(parse_fields(ChatRequest, {"messages": messages}), messages, 100)
