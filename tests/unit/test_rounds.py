"""The published modes: one message per round, and what becomes of the guess."""

import asyncio

import pytest
from fake_draft import FakeDraft, TrieKeeper, fake_logits, make_drafter

from edge_agent.drafter import Drafter
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.rounds import RoundDrafting
from specedge.sampling import SamplingParams

PROMPT = (2, 7, 1, 8)
GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
GROWTH = GrowthSettings(max_n_beams=3, max_beam_len=4, max_branch_width=3, max_budget=10)
PROACTIVE = GrowthSettings(max_n_beams=3, max_beam_len=3, max_branch_width=2, max_budget=6, decay=0.95)


def make(mode: str) -> tuple[FakeDraft, Drafter, TrieKeeper]:
    runner = FakeDraft(400)
    settings = DraftingSettings(mode=mode, growth=GROWTH, proactive=PROACTIVE)  # type: ignore[arg-type]
    drafter = make_drafter(runner, settings)
    return runner, drafter, TrieKeeper(drafter, PROMPT, GREEDY)


async def run_until_idle(drafter: Drafter) -> int:
    """Steps taken until nothing is worth drafting; messages are delivered."""
    num_steps = 0
    while drafter.step():
        num_steps += 1
    await asyncio.sleep(0)
    return num_steps


def session_of(drafter: Drafter) -> RoundDrafting:
    (session,) = drafter._core._sessions.values()
    assert isinstance(session, RoundDrafting)
    return session


def expansion_head(drafter: Drafter, keeper: TrieKeeper) -> list[int]:
    """The tokens the guess supposes to be committed next."""
    guess = session_of(drafter).guess
    assert guess is not None
    return guess.trie.committed[len(keeper.trie.committed) :]


async def test_a_synchronous_round_is_one_message_of_a_bounded_tree() -> None:
    runner, drafter, keeper = make("off")
    for round_number in range(1, 6):
        assert 1 <= await run_until_idle(drafter) <= GROWTH.max_beam_len
        assert len(keeper.messages) == round_number
        assert len(keeper.messages[-1].token_ids) == GROWTH.max_budget
        assert max(len(path) for path in keeper.live_paths()) <= GROWTH.max_beam_len
        assert await run_until_idle(drafter) == 0
        text = list(keeper.trie.committed)
        for _ in range(6):
            text.append(int(fake_logits(text).argmax()))
        answer = text[len(keeper.trie.committed) :]
        answer[2] = 12 - answer[2]
        keeper.commit(keeper.walk(answer))
    assert max(runner.computed.values()) == 1
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_a_verdict_that_kills_a_tree_in_its_last_step_begins_a_new_round() -> None:
    runner, drafter, keeper = make("off")
    for _ in range(GROWTH.max_beam_len - 1):
        drafter.step()
    wrong = int(fake_logits(PROMPT).argmin())
    assert not keeper.messages

    def overtake(batch: object) -> None:
        runner.during_forward = lambda batch: None
        keeper.commit([wrong])

    runner.during_forward = overtake
    drafter.step()
    assert not session_of(drafter).tree.trie.num_live
    await run_until_idle(drafter)
    assert [len(message.token_ids) for message in keeper.messages] == [GROWTH.max_budget]


async def test_a_verdict_while_a_tree_grows_begins_a_new_round() -> None:
    _, drafter, keeper = make("off")
    drafter.step()
    drafter.step()
    keeper.commit([int(fake_logits(PROMPT).argmax())])
    assert await run_until_idle(drafter) <= GROWTH.max_beam_len
    assert len(keeper.messages) == 1
    assert keeper.trie.num_live == len(keeper.messages[0].token_ids) > 0


async def test_a_partly_verified_tree_is_grown_on_and_only_new_nodes_are_sent() -> None:
    runner, drafter, keeper = make("off")
    await run_until_idle(drafter)
    keeper.commit([max(keeper.live_paths(), key=len)[0]])
    survivors = keeper.live_paths()
    assert survivors
    await run_until_idle(drafter)
    assert len(keeper.messages[1].token_ids) == keeper.trie.num_live - len(survivors)
    assert survivors < keeper.live_paths()
    assert max(runner.computed.values()) == 1


@pytest.mark.parametrize("mode", ["included", "excluded"])
async def test_a_hit_keeps_the_guess_without_computing_anything_again(mode: str) -> None:
    runner, drafter, keeper = make(mode)
    await run_until_idle(drafter)
    head = expansion_head(drafter, keeper)
    session = session_of(drafter)
    assert session.guess is not None
    grown = session.guess.trie.num_live
    assert 0 < grown <= PROACTIVE.max_budget
    assert len(keeper.messages) == 1
    assert tuple(head[:-1]) in keeper.live_paths()
    assert tuple(head) not in keeper.live_paths()
    keeper.commit(head)
    num_steps = await run_until_idle_of_round(drafter, keeper)
    assert len(keeper.messages) == 2
    assert drafter.stats.num_guesses_hit == 1
    assert max(runner.computed.values()) == 1
    if mode == "included":
        assert num_steps == GROWTH.max_beam_len - PROACTIVE.max_beam_len
    else:
        assert num_steps > GROWTH.max_beam_len - PROACTIVE.max_beam_len
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()


async def run_until_idle_of_round(drafter: Drafter, keeper: TrieKeeper) -> int:
    """Steps taken until the round's message has been sent."""
    num_steps, num_messages = 0, len(keeper.messages)
    while len(keeper.messages) == num_messages:
        assert drafter.step()
        await asyncio.sleep(0)
        num_steps += 1
    return num_steps


@pytest.mark.parametrize("mode", ["included", "excluded"])
async def test_a_miss_throws_the_guess_away(mode: str) -> None:
    _, drafter, keeper = make(mode)
    await run_until_idle(drafter)
    head = expansion_head(drafter, keeper)
    keeper.commit([*head[:-1], (head[-1] + 1) % 13])
    held = drafter.pool.num_held
    drafter.step()
    assert drafter.stats.num_guesses_missed == 1
    assert session_of(drafter).guess is None
    assert drafter.stats.wasted["guess_missed"] > 0
    assert drafter.pool.num_held < held
    assert await run_until_idle(drafter) > 0
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_a_verdict_during_proactive_growth_ends_it_at_once() -> None:
    runner, drafter, keeper = make("excluded")
    await run_until_idle_of_round(drafter, keeper)
    drafter.step()  # leaves
    head = expansion_head(drafter, keeper)
    runner.during_forward = lambda batch: keeper.commit([(head[0] + 1) % 13])
    drafter.step()
    runner.during_forward = lambda batch: None
    assert session_of(drafter).guess is None
    assert drafter.stats.num_late_results > 0
    assert await run_until_idle_of_round(drafter, keeper) <= GROWTH.max_beam_len


async def test_a_broken_stream_ends_the_guess_and_sends_the_tree_again() -> None:
    _, drafter, keeper = make("included")
    await run_until_idle(drafter)
    live = keeper.live_paths()
    keeper.reconnect()
    assert drafter.step()  # a new guess
    await asyncio.sleep(0)
    assert keeper.live_paths() == live
    assert len(keeper.messages) == 1
