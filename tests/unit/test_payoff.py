"""When drafting rests because it does not pay: of one session, and of all."""

import asyncio

from fake_draft import VOCAB_SIZE, FakeDraft, TrieKeeper, make_drafter

from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.payoff import Payoff, PayoffSettings
from specedge.sampling import SamplingParams

PROMPT = (3, 1, 4, 1, 5)
GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
SMALL = GrowthSettings(max_n_beams=4, max_beam_len=3, max_branch_width=3, max_budget=12)


async def deliver() -> None:
    """Lets the event loop pass messages on."""
    await asyncio.sleep(0)


def undrafted(keeper: TrieKeeper) -> int:
    """A token that no draft begins with."""
    tried = {path[0] for path in keeper.live_paths()}
    return next(token for token in range(VOCAB_SIZE) if token not in tried)


def test_drafting_that_never_pays_rests_and_is_tried_again() -> None:
    payoff = Payoff(PayoffSettings(min_accepted=0.5, window=4, rest=3, trial=2))
    states = []
    for _ in range(12):
        payoff.verdict(0)
        states.append(payoff.is_drafting)
    assert states == [True] * 3 + [False] * 3 + [True] * 2 + [False] * 3 + [True]


def test_drafting_that_pays_goes_on_and_a_good_trial_ends_the_rest() -> None:
    payoff = Payoff(PayoffSettings(min_accepted=0.5, window=4, rest=2, trial=2))
    for _ in range(20):
        payoff.verdict(1)
        assert payoff.is_drafting
    for _ in range(4 + 4 + 2):
        payoff.verdict(0)
    assert payoff.is_drafting  # the trial has begun
    for _ in range(6):
        payoff.verdict(2)
        assert payoff.is_drafting


async def test_session_whose_drafts_are_never_accepted_rests() -> None:
    runner = FakeDraft(400)
    payoff = PayoffSettings(min_accepted=0.1, window=5, rest=4, trial=2)
    drafter = make_drafter(runner, DraftingSettings(growth=SMALL, payoff=payoff))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    drafted = []
    for _ in range(12):
        drafted.append(drafter.step())
        await deliver()
        keeper.commit([undrafted(keeper)])
    assert drafted == [True] * 5 + [False] * 4 + [True] * 2 + [False]


async def test_what_is_looked_up_does_not_pay_for_the_draft_model() -> None:
    payoff = PayoffSettings(min_accepted=0.1, window=4, rest=8, trial=2)
    drafter = make_drafter(FakeDraft(400), DraftingSettings(growth=SMALL, payoff=payoff, looks_up=True))
    prompt = tuple(range(1, 13)) * 2
    keeper = TrieKeeper(drafter, prompt, GREEDY)
    drafted = []
    for _ in range(10):
        drafted.append(drafter.step())
        await deliver()
        assert keeper.live_paths(), "looked up, whether the model drafts or not"
        text = keeper.trie.committed
        keeper.commit([text[-12], text[-11]])
    assert drafter.stats.lookup.confirmed["lookup"] >= 10
    assert drafted == [True] * 4 + [False] * 6


async def test_no_session_drafts_while_it_pays_for_none_and_one_that_rests_alone_does_not_count() -> None:
    own = PayoffSettings(min_accepted=0.1, window=6, rest=100)
    overall = PayoffSettings(min_accepted=0.1, window=9, rest=5, trial=3)
    drafter = make_drafter(FakeDraft(4000), DraftingSettings(growth=SMALL, payoff=own, overall_payoff=overall))
    keepers = [TrieKeeper(drafter, (*PROMPT, index), GREEDY) for index in range(3)]

    async def verdicts(right: int) -> bool:
        """One for each; so many sessions have a token of theirs accepted. Returns whether anything was drafted."""
        has_drafted = drafter.step()
        await deliver()
        for index, keeper in enumerate(keepers):
            tried, wrong = {path[0] for path in keeper.live_paths()}, undrafted(keeper)
            keeper.commit([min(tried), wrong] if tried and index < right else [wrong])
        return has_drafted

    assert [await verdicts(right=0) for _ in range(3)] == [True, True, True]
    assert not await verdicts(right=0), "nine verdicts, and nothing accepted"
    assert not await verdicts(right=0)
    assert await verdicts(right=3), "tried again after five"
    assert [await verdicts(right=1) for _ in range(12)] == [True] * 12, "it pays for one, and the others rest alone"
    assert drafter.stats.num_rests == 1 + 2


async def test_a_drafter_that_is_left_by_all_begins_anew() -> None:
    overall = PayoffSettings(min_accepted=0.1, window=2, rest=1000)
    drafter = make_drafter(FakeDraft(400), DraftingSettings(growth=SMALL, overall_payoff=overall))
    keeper = TrieKeeper(drafter, PROMPT, GREEDY)
    for _ in range(3):
        has_drafted = drafter.step()
        await deliver()
        keeper.commit([undrafted(keeper)])
    assert not has_drafted
    keeper.handle.close()
    TrieKeeper(drafter, PROMPT, GREEDY)
    assert drafter.step()
