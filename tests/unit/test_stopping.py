"""Token limits, stop tokens and stop strings, one rule at a time."""

import pytest

from specedge.sampling import SamplingParams
from specedge.stopping import TextStopper, TokenStops

EOS = 2


@pytest.mark.parametrize(
    ("tokens", "num_generated", "kept", "reason"),
    [
        ([5, 6, 7], 0, [5, 6, 7], None),
        ([], 3, [], None),
        ([5, EOS, 7, 8], 0, [5, EOS], "stop"),
        ([EOS, EOS], 0, [EOS], "stop"),
        ([5, 9, 7], 0, [5, 9], "stop"),
        ([5, 6, 7, 8], 7, [5, 6, 7], "length"),
        ([5, 6, 7], 7, [5, 6, 7], "length"),
        ([5, 6], 7, [5, 6], None),
        ([5, 6, EOS], 7, [5, 6, EOS], "stop"),
        ([5, 6, 7, EOS], 7, [5, 6, 7], "length"),
        ([5], 10, [], "length"),
        ([], 10, [], "length"),
    ],
)
def test_the_answer_ends_inside_a_path(tokens: list[int], num_generated: int, kept: list[int], reason: str) -> None:
    stops = TokenStops((EOS, 3), SamplingParams(max_tokens=10, stop_token_ids=(9,)))
    assert stops.truncate(tokens, num_generated) == (kept, reason)


def test_every_end_of_sequence_id_stops() -> None:
    stops = TokenStops((EOS, 3), SamplingParams(max_tokens=10))
    assert stops.truncate([5, 3, EOS], 0) == ([5, 3], "stop")


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_small_max_tokens_cut_a_long_path(max_tokens: int) -> None:
    stops = TokenStops((EOS,), SamplingParams(max_tokens=max_tokens))
    assert stops.truncate([5, 6, 7, 8], 0) == ([5, 6, 7, 8][:max_tokens], "length")


def test_ignore_eos_leaves_the_stop_ids_in_force() -> None:
    stops = TokenStops((EOS,), SamplingParams(max_tokens=10, ignore_eos=True, stop_token_ids=(9,)))
    assert stops.truncate([5, EOS, 6, 9, 7], 0) == ([5, EOS, 6, 9], "stop")


def test_a_stop_id_that_is_also_end_of_sequence_stops_under_ignore_eos() -> None:
    stops = TokenStops((EOS,), SamplingParams(max_tokens=10, ignore_eos=True, stop_token_ids=(EOS,)))
    assert stops.truncate([5, EOS, 6], 0) == ([5, EOS], "stop")


def test_nothing_stops_within_the_first_min_tokens() -> None:
    stops = TokenStops((EOS,), SamplingParams(max_tokens=10, min_tokens=4, stop_token_ids=(9,)))
    assert stops.truncate([EOS, 9, EOS], 1) == ([EOS, 9, EOS], None)
    assert stops.truncate([EOS, 9, EOS, 5], 2) == ([EOS, 9, EOS], "stop")


def test_a_stop_string_ends_the_text_before_it() -> None:
    assert TextStopper(["END"]).feed("once END upon") == ("once ", True)


def test_a_possible_beginning_is_held_back_until_it_is_decided() -> None:
    stopper = TextStopper(["\n\nUser:"])
    assert stopper.feed("Hello\n") == ("Hello", False)
    assert stopper.feed("\nUs") == ("", False)
    assert stopper.feed("age") == ("\n\nUsage", False)
    assert stopper.feed("\n\nUser") == ("", False)
    assert stopper.feed(": hi") == ("", True)


def test_held_text_is_released_at_the_end() -> None:
    stopper = TextStopper(["END"])
    assert stopper.feed("the EN") == ("the ", False)
    assert stopper.flush() == "EN"
    assert stopper.flush() == ""


def test_only_the_undecided_end_is_held_back() -> None:
    stopper = TextStopper(["aab"])
    assert stopper.feed("aaaa") == ("aa", False)
    assert stopper.feed("b") == ("", True)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    stops = ["abcd", "bc"]
    whole = TextStopper(stops)
    assert whole.feed("abcd") == ("a", True)
    cut = TextStopper(stops)
    assert [cut.feed(character) for character in "abc"] == [("", False), ("", False), ("a", True)]


def test_the_longest_of_those_complete_at_once_wins() -> None:
    assert TextStopper(["c", "abc", "bc"]).feed("xabc") == ("x", True)


def test_without_stop_strings_everything_is_released_at_once() -> None:
    stopper = TextStopper([])
    assert stopper.feed("any text") == ("any text", False)
    assert stopper.flush() == ""
