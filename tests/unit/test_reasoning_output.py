"""The split of an answer into thought and content does not depend on how its text was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.http.delta import joined
from edge_agent.http.reasoning import ReasoningOutput, begins_inside

CASES = [
    ("<think>\nWhy not.\n</think>\n\nYes.", False, "Why not.", "Yes."),
    ("  <think>a</think>b", False, "a", "b"),
    ("Why not.\n</think>\n\nYes.", True, "Why not.", "Yes."),
    ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
    ("No thought, 1 < 2.", False, "", "No thought, 1 < 2."),
    ("  kept", False, "", "  kept"),
    ("<thin ice", False, "", "<thin ice"),
    ("<think>cut off", False, "cut off", ""),
    ("cut off </thi", True, "cut off </thi", ""),
    ("a\n\nb </think> c </think>", True, "a\n\nb", "c </think>"),
    ("<think", False, "", "<think"),
    ("", False, "", ""),
]


def split(pieces: list[str], is_inside: bool) -> tuple[str, str]:
    parser = ReasoningOutput(is_inside)
    whole = joined([*map(parser.feed, pieces), parser.end()])
    return whole.reasoning, whole.content


@pytest.mark.parametrize(("text", "is_inside", "reasoning", "content"), CASES)
def test_thought_and_content(text: str, is_inside: bool, reasoning: str, content: str) -> None:
    assert split([text], is_inside) == (reasoning, content)
    assert split(list(text), is_inside) == (reasoning, content)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", " ", "\n", "a", "b<"]), max_size=12),
    st.booleans(),
)
def test_the_cuts_do_not_matter(pieces: list[str], is_inside: bool) -> None:
    whole = "".join(pieces)
    assert split(pieces, is_inside) == split([whole], is_inside) == split(list(whole), is_inside)


@pytest.mark.parametrize(
    ("prompt", "is_inside"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<think>old</think> text <think>", True),
    ],
)
def test_what_the_prompt_leaves_open(prompt: str, is_inside: bool) -> None:
    assert begins_inside(prompt) is is_inside
