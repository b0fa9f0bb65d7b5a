"""An answer ends at the same place however it is cut into bursts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from specedge.sampling import SamplingParams
from specedge.stopping import TextStopper, TokenStops

TEXTS = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)
CUTS = st.lists(st.integers(0, 40), max_size=12).map(sorted)
TOKENS = st.lists(st.integers(0, 6), max_size=30)


def pieces(whole: str | list[int], cuts: list[int]) -> list[str] | list[list[int]]:
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def text_before_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Naive: look at every end, shortest first, for a stop string there, longest first."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=500)
@given(text=TEXTS, stops=STOPS, cuts=CUTS)
def test_any_cutting_of_a_text_gives_the_same_answer(text: str, stops: list[str], cuts: list[int]) -> None:
    stopper = TextStopper(stops)
    released, is_hit, fed = "", False, ""
    for piece in pieces(text, cuts):
        more, is_hit = stopper.feed(piece)
        released += more
        fed += piece
        if is_hit:
            break
        held = fed[len(released) :]
        assert fed.startswith(released)
        longest_beginning = max((n for stop in stops for n in range(len(stop)) if fed.endswith(stop[:n])), default=0)
        assert len(held) == longest_beginning, "no more and no less is held back than may begin a stop string"
    if not is_hit:
        released += stopper.flush()
    assert (released, is_hit) == text_before_first_stop(text, stops)


@settings(max_examples=500)
@given(
    tokens=TOKENS,
    cuts=CUTS,
    limits=st.tuples(st.integers(0, 12), st.integers(1, 12)).map(sorted),
    eos_ids=st.sets(st.integers(0, 6), max_size=2),
    stop_ids=st.sets(st.integers(0, 6), max_size=2),
    ignore_eos=st.booleans(),
)
def test_any_cutting_of_the_tokens_gives_the_same_answer(
    tokens: list[int], cuts: list[int], limits: list[int], eos_ids: set[int], stop_ids: set[int], ignore_eos: bool
) -> None:
    min_tokens, max_tokens = limits[0], max(1, limits[1])
    params = SamplingParams(
        max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=tuple(stop_ids), ignore_eos=ignore_eos
    )
    expected: list[int] = []
    expected_reason = None
    for token_id in tokens:
        expected.append(token_id)
        may_stop = len(expected) > min_tokens
        if may_stop and (token_id in stop_ids or (token_id in eos_ids and not ignore_eos)):
            expected_reason = "stop"
        elif len(expected) == max_tokens:
            expected_reason = "length"
        if expected_reason:
            break

    stops = TokenStops(eos_ids, params)
    answer: list[int] = []
    reason = None
    for burst in pieces(tokens, cuts):
        kept, reason = stops.truncate(burst, len(answer))
        answer += kept
        if reason:
            break
    assert (answer, reason) == (expected, expected_reason)
