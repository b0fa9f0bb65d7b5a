"""What the drafter does step by step, with a model that remembers which text each slot was computed for."""

import asyncio
from itertools import count

import pytest
from fake_draft import VOCAB_SIZE, FakeDraft, TrieKeeper, fake_logits, make_drafter

from edge_agent.drafter import Drafter
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.tau import TauEstimate
from specedge.reference_sampler import reference_scores
from specedge.sampling import SamplingParams

PROMPT = (3, 1, 4, 1, 5)
GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
SMALL = GrowthSettings(max_n_beams=4, max_beam_len=3, max_branch_width=3, max_budget=12)


def draft_answer(prompt: tuple[int, ...], num_tokens: int, wrong_every: int = 0) -> list[int]:
    """What the fake draft would say itself, with a wrong token every so often."""
    text = list(prompt)
    for index in range(num_tokens):
        best = int(fake_logits(text).argmax())
        text.append((best + 1) % VOCAB_SIZE if wrong_every and (index + 1) % wrong_every == 0 else best)
    return text[len(prompt) :]


async def deliver() -> None:
    """Lets the event loop pass messages on."""
    await asyncio.sleep(0)


async def test_streamed_drafting_computes_every_text_once() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    answer = draft_answer(PROMPT, 60, wrong_every=7)
    num_verdicts = 0
    while answer:
        for _ in range(3):
            drafter.step()
        await deliver()
        verdict = keeper.walk(answer)
        keeper.commit(verdict)
        del answer[: len(verdict)]
        num_verdicts += 1
    assert num_verdicts < 30
    assert max(runner.computed.values()) == 1
    assert drafter.stats.num_confirmed > 30
    num_expanded = sum(runner.num_rows) - drafter.stats.num_computed
    assert len(PROMPT) < drafter.stats.num_computed < 60
    assert 0 < num_expanded <= drafter.stats.num_drafted
    assert drafter.pool.num_held > 0
    keeper.handle.close()
    assert not drafter.step()
    drafter.check_integrity()


async def test_surviving_nodes_need_no_forward_before_they_grow_on() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    for _ in range(4):
        drafter.step()
    await deliver()
    first = draft_answer(PROMPT, 2)
    survivors = {path[2:] for path in keeper.live_paths() if list(path[:2]) == first and len(path) > 2}
    assert survivors
    runner.computed.clear()
    keeper.commit(first)
    drafter.step()
    await deliver()
    assert survivors < keeper.live_paths()
    assert all(len(path) > len(PROMPT) + 2 for path in runner.computed)


async def test_eight_sessions_share_every_forward_and_do_not_change_each_other() -> None:
    async def run(num_sessions: int) -> tuple[list[set[tuple[int, ...]]], Drafter]:
        runner = FakeDraft(2000)
        drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
        drafter.ranking.greedy_tau = TauEstimate(min_observations=1000)  # the one thing sessions do share
        prompts = [(*PROMPT, index) for index in range(num_sessions)]
        keepers = [TrieKeeper(drafter, prompt, GREEDY) for prompt in prompts]
        seen = []
        for verdict_number in range(6):
            for _ in range(3):
                drafter.step()
            await deliver()
            seen.append(keepers[0].live_paths())
            for prompt, keeper in zip(prompts, keepers, strict=True):
                generated = keeper.trie.committed[len(prompt) :]
                keeper.commit(keeper.walk(draft_answer(prompt, len(generated) + 2, 5)[len(generated) :]))
            assert drafter.stats.num_steps == 3 * (verdict_number + 1)
        return seen, drafter

    alone, _ = await run(1)
    together, drafter = await run(8)
    assert together == alone
    assert drafter.stats.num_session_steps > 7 * drafter.stats.num_steps  # a tree is complete now and then
    assert drafter.stats.num_rows > drafter.stats.num_session_steps


async def test_a_step_has_a_bounded_number_of_rows() -> None:
    runner = FakeDraft(4000)
    drafter = make_drafter(runner, DraftingSettings(growth=GrowthSettings(max_n_beams=64, max_budget=64)))
    for index in range(40):
        TrieKeeper(drafter, (*PROMPT, index % VOCAB_SIZE, index // VOCAB_SIZE), GREEDY)
    for _ in range(8):
        drafter.step()
    assert runner.num_rows[0] == 128  # prompts: 128 of the 280 tokens
    assert runner.num_rows[3:] == [128] * 5  # nodes


async def test_verdict_during_a_forward_comes_before_its_results() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    for _ in range(3):
        drafter.step()
    await deliver()
    best = draft_answer(PROMPT, 1)[0]
    wrong = next(token for token in count() if (token,) not in keeper.live_paths())
    assert wrong < VOCAB_SIZE and wrong != best
    num_messages = len(keeper.messages)
    runner.during_forward = lambda batch: keeper.commit([wrong])
    drafter.step()
    await deliver()
    assert len(keeper.messages) == num_messages
    assert drafter.stats.num_late_results > 0
    assert drafter.pool.num_held == len(PROMPT)  # slots of the dead were freed, those of the text stay
    runner.during_forward = lambda batch: None
    drafter.step()
    await deliver()
    assert keeper.trie.num_live > 0
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_nodes_in_flight_that_survive_a_verdict_are_grown_from_at_once_and_computed_once() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    for _ in range(3):
        drafter.step()
    await deliver()
    right = draft_answer(PROMPT, 12)
    assert tuple(right[:3]) in keeper.live_paths()
    runner.during_forward = lambda batch: keeper.commit(right[:2])
    drafter.step()  # the verdict's subtree holds what is being computed
    in_flight = [path[len(PROMPT) + 2 :] for path in runner.wanted_paths if path[len(PROMPT) :][:2] == tuple(right[:2])]
    assert any(in_flight)
    runner.during_forward = lambda batch: None
    await deliver()
    grown = {path[:-1] for path in keeper.live_paths()}
    assert grown & {path for path in in_flight if path}, "their children are there without another forward"
    for _ in range(4):
        drafter.step()
    assert max(runner.computed.values()) == 1
    assert drafter.stats.num_late_results < len(runner.wanted_paths) + len(in_flight)
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_session_closed_during_a_forward_leaves_nothing() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
    keeper, other = TrieKeeper(drafter, PROMPT, GREEDY), TrieKeeper(drafter, (9, 9), GREEDY)
    drafter.step()
    runner.during_forward = lambda batch: keeper.handle.close()
    drafter.step()
    await deliver()
    runner.during_forward = lambda batch: None
    num_nodes = keeper.trie.num_nodes
    drafter.step()
    await deliver()
    assert keeper.trie.num_nodes == num_nodes
    other.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_paused_session_takes_no_rows_and_keeps_its_tree() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    drafter.step()
    keeper.handle.pause()
    assert not drafter.step()
    held = drafter.pool.num_held
    keeper.handle.resume()
    assert drafter.step()
    assert drafter.pool.num_held > held
    assert max(runner.computed.values()) == 1


@pytest.mark.parametrize("mode", ["streamed", "off", "excluded"])
async def test_restart_sends_live_nodes_again_from_zero_without_a_forward(mode: str) -> None:
    runner = FakeDraft(400)
    growth = GrowthSettings(max_n_beams=4, max_beam_len=3, max_branch_width=3, max_budget=64)  # nothing is trimmed
    drafter = make_drafter(runner, DraftingSettings(mode=mode, growth=growth))  # type: ignore[arg-type]
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    for _ in range(4):
        drafter.step()
    await deliver()
    keeper.commit(draft_answer(PROMPT, 1))
    for _ in range(4):
        drafter.step()
    await deliver()
    live = keeper.live_paths()
    keeper.handle.pause()
    keeper.reconnect()
    keeper.handle.resume()
    drafter.step()
    await deliver()
    assert keeper.epoch == 1
    assert len(keeper.messages) <= 2
    assert live <= keeper.live_paths()
    for _ in range(4):
        drafter.step()
    assert max(runner.computed.values()) == 1


async def test_message_of_an_old_epoch_is_not_delivered() -> None:
    drafter = make_drafter(FakeDraft(400), DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    drafter.step()  # its message waits in the event loop
    keeper.reconnect()
    await deliver()
    keeper.check()
    assert keeper.messages == []
    drafter.step()
    await deliver()
    assert keeper.trie.num_live > 0


async def test_closed_session_gets_no_more_messages() -> None:
    drafter = make_drafter(FakeDraft(400), DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    drafter.step()
    keeper.handle.close()
    keeper.handle.close()
    keeper.handle.verdict([1])
    assert keeper.handle.restart() == 1
    await deliver()
    assert keeper.messages == []
    assert not drafter.step()


async def test_newest_session_gives_up_its_slots_and_comes_back() -> None:
    runner = FakeDraft(64)
    settings = GrowthSettings(max_n_beams=4, max_budget=6, max_branch_width=2)
    drafter = make_drafter(runner, DraftingSettings(growth=settings))
    old, new = TrieKeeper(drafter, (1,) * 8, GREEDY), TrieKeeper(drafter, (2,) * 40, GREEDY)
    while not drafter.stats.num_starved:
        drafter.step()
        await deliver()
        old.commit(old.walk(draft_answer(tuple(old.trie.committed), 3)))
        drafter.pool.check_integrity()
    for _ in range(3):
        drafter.step()
    await deliver()
    num_nodes = new.trie.num_nodes
    assert drafter.stats.num_starved == 1
    old.commit(old.walk(draft_answer(tuple(old.trie.committed), 3)))
    assert drafter.step()
    await deliver()
    assert new.trie.num_nodes == num_nodes
    old.handle.close()
    while drafter.step():
        pass
    await deliver()
    assert new.trie.num_nodes > num_nodes
    new.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_text_longer_than_all_slots_is_not_drafted() -> None:
    drafter = make_drafter(FakeDraft(16), DraftingSettings(growth=SMALL))
    keeper = TrieKeeper(drafter, (1,) * 30, GREEDY)
    for _ in range(5):
        drafter.step()
    assert not drafter.step()
    assert drafter.pool.num_held == 0
    keeper.commit([2])
    assert not drafter.step()


async def test_drafting_stops_at_final_tokens_and_at_the_last_position() -> None:
    answer = draft_answer(PROMPT, 4)
    drafter = make_drafter(FakeDraft(400), DraftingSettings(growth=SMALL))
    limited = TrieKeeper(drafter, PROMPT, SamplingParams(temperature=0.0, max_tokens=2))
    ended = TrieKeeper(drafter, PROMPT, SamplingParams(temperature=0.0, max_tokens=50), eos_ids=[answer[0]])
    while drafter.step():
        pass
    await deliver()
    assert max(len(path) for path in limited.live_paths()) == 2
    assert (answer[0],) in ended.live_paths()
    assert not any(len(path) > 1 and answer[0] in path[:-1] for path in ended.live_paths())
    ended.commit(answer[:1])
    limited.commit([0, 0])
    assert not drafter.step()


async def test_positions_the_draft_does_not_know_are_left_alone() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL, max_positions=7))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    while drafter.step():
        pass
    await deliver()
    assert max(len(path) for path in runner.computed) == 7
    assert max(len(path) for path in keeper.live_paths()) == 3
    keeper.commit([0, 0, 0])
    assert not drafter.step()


async def test_nodes_of_penalised_sessions_are_ranked_by_their_own_path() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(mode="excluded", growth=SMALL))
    params = SamplingParams(temperature=0.0, presence_penalty=2.0, repetition_penalty=1.5, max_tokens=50)
    keeper = TrieKeeper(drafter, PROMPT, params)

    def best(generated: tuple[int, ...]) -> set[int]:
        logits = fake_logits((*PROMPT, *generated)).numpy()
        scores = reference_scores(logits, params, prompt_ids=PROMPT, generated_ids=generated, eos_ids=[])
        return set(scores.argsort()[::-1][:3].tolist())

    for _ in range(4):
        while drafter.step():
            pass
        await deliver()
        generated = tuple(keeper.trie.committed[len(PROMPT) :])
        paths = keeper.live_paths()
        assert len(paths) == 12
        for path in paths:
            assert path[-1] in best((*generated, *path[:-1]))
        keeper.commit(max(paths, key=len))


async def test_looked_up_nodes_need_no_forward_to_be_sent_and_one_to_be_computed() -> None:
    runner = FakeDraft(400)
    drafter = make_drafter(runner, DraftingSettings(growth=GrowthSettings(max_budget=32), looks_up=True))
    prompt = tuple(range(1, 13)) * 2
    keeper = TrieKeeper(drafter, prompt, GREEDY)
    drafter.step()  # the prompt
    await deliver()
    chain = prompt[:12]
    first = keeper.messages[0]
    assert tuple(first.token_ids) == chain[: len(first.token_ids)] and len(first.token_ids) > 3
    num_rows = len(runner.num_rows)
    drafter.step()
    assert sum(runner.num_rows[num_rows:]) > 4, "the chain is computed in one forward"
    keeper.commit(chain[:4])
    assert max(runner.computed.values()) == 1
    drafter.step()
    await deliver()
    assert drafter.stats.lookup.confirmed["lookup"] == 4
    assert keeper.live_paths()
    keeper.handle.close()
    drafter.step()
    drafter.check_integrity()


async def test_the_published_modes_look_nothing_up() -> None:
    drafter = make_drafter(FakeDraft(400), DraftingSettings(mode="off", growth=SMALL, looks_up=True))
    TrieKeeper(drafter, PROMPT * 3, GREEDY, prediction=PROMPT)
    for _ in range(4):
        drafter.step()
    assert drafter.stats.num_drafted > 0
    assert not drafter.stats.lookup.drafted
