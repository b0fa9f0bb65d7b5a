"""Which cells a run has in which order, and which requests each of them."""

import pytest

from specedge_bench.arrivals import parse_load
from specedge_bench.prompts.dataset import Prompt
from specedge_bench.schedule import interleave, plan_requests
from specedge_bench.systems import parse_system

PROMPTS = [Prompt(f"p{number}", "continuation", text=f"text {number}") for number in range(4)]


def test_systems_take_turns_within_each_network_and_load() -> None:
    systems = [parse_system(name) for name in ("autoregressive", "specedge")]
    loads = [parse_load(name) for name in ("closed-1", "closed-2")]
    cells = [(cell.name, cell.repetition) for cell in interleave(systems, ["lan", "far"], loads, 2)]

    assert len(cells) == len(set(cells)) == 16
    assert cells[:4] == [
        ("autoregressive/lan/closed-1", 0),
        ("specedge/lan/closed-1", 0),
        ("autoregressive/lan/closed-2", 0),
        ("specedge/lan/closed-2", 0),
    ]
    assert cells[8] == ("autoregressive/lan/closed-1", 1)


def test_requests_are_spread_over_users_and_edges_and_go_on_in_the_next_repetition() -> None:
    load = parse_load("closed-2")
    first, second = (
        plan_requests(PROMPTS, load, repetition, num_requests=3, num_edges=2, seed=10) for repetition in (0, 1)
    )

    assert [(plan.user, plan.edge) for plan in first] == [(0, 0), (1, 1), (0, 0), (1, 1)]
    assert [plan.seed for plan in first + second] == list(range(10, 18))
    assert [plan.prompt.id for plan in first] == ["p0", "p1", "p2", "p3"]
    assert [plan.prompt.id for plan in second] == ["p0@1", "p1@1", "p2@1", "p3@1"]
    assert all(plan.due_s is None for plan in first)


@pytest.mark.parametrize("is_cold", [True, False])
def test_a_cold_run_sends_no_system_the_same_prompt_twice(is_cold: bool) -> None:
    loads = [parse_load(name) for name in ("closed-1", "closed-3")]
    shape = {"num_requests": 6, "num_edges": 1, "seed": 1}
    plans = [
        plan_requests(PROMPTS, load, repetition, **shape, column=column, num_columns=len(loads), is_cold=is_cold)
        for repetition in range(3)
        for column, load in enumerate(loads)
    ]
    sent = [request.prompt for plan in plans for request in plan]
    texts = [prompt.text for prompt in sent]

    assert len({prompt.id for prompt in sent}) == len(set(texts)) == (len(sent) if is_cold else len(PROMPTS))
    assert texts[:4] == [prompt.text for prompt in PROMPTS]
    assert all(any(text.endswith(prompt.text) for prompt in PROMPTS) for text in texts)


def test_a_mark_stands_before_the_first_word() -> None:
    chat = Prompt("c", "chat", messages=(("system", "Be kind."), ("user", "Hello")))

    assert chat.marked("7") == Prompt("c@7", "chat", messages=(("system", "(7) Be kind."), ("user", "Hello")))
    assert PROMPTS[0].marked("7") == Prompt("p0@7", "continuation", text="(7) text 0")


def test_in_an_open_loop_every_request_is_a_user_with_a_due_time() -> None:
    plans = plan_requests(PROMPTS, parse_load("poisson-1"), 0, num_requests=3, num_edges=2, seed=0)

    assert [(plan.user, plan.edge) for plan in plans] == [(0, 0), (1, 1), (2, 0)]
    due = [plan.due_s for plan in plans]
    assert None not in due and due == sorted(due, key=lambda moment: moment or 0.0)
