"""The drafter under arbitrary interleavings, in every mode, against a verifier that keeps all it was ever sent.

The fake model asserts that every row attends to exactly its own text. Here: whatever is sent resolves, what the edge
takes for sent and live is live on the verifier too, drafted nodes add up, and slots are all free in the end.
"""

import asyncio
from random import Random

import pytest
from fake_draft import VOCAB_SIZE, FakeDraft, TrieKeeper, make_drafter
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.drafter import Drafter
from specedge.drafting.draft_session import DraftingSettings, SessionDrafting
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.payoff import PayoffSettings
from specedge.drafting.rounds import RoundDrafting
from specedge.sampling import SamplingParams
from specedge.trie import ROOT


def num_live(session: SessionDrafting) -> int:
    guess = session.guess if isinstance(session, RoundDrafting) else None
    return session.tree.trie.num_live + (guess.trie.num_live if guess is not None else 0)


def check(drafter: Drafter, keepers: list[TrieKeeper]) -> None:
    """Between two steps, when all commands have been applied and all messages delivered."""
    drafter.pool.check_integrity()
    stats = drafter.stats
    sessions = list(drafter._core._sessions.values())
    lost = stats.wasted.total()
    assert stats.num_drafted == stats.num_confirmed + lost + sum(map(num_live, sessions))
    for session, keeper in zip(sessions, keepers, strict=True):
        trie = session.tree.trie
        assert trie.committed == keeper.trie.committed
        assert trie.num_live <= session.max_tree_nodes
        if session.lookup is None:
            assert session.tree.num_uncomputed == 0 or trie.num_live == 0
        with_slots = session.tree._node_slots
        assert session.tree.num_uncomputed == 0 or not with_slots
        assert all(trie.parent(number) in (ROOT, *with_slots) for number in with_slots)
        for number, node in session.tree.growth.nodes.items():
            assert trie.score(number) == pytest.approx(session.tree.growth.root_loss - node[0])
        assert trie.select(100) == list(session.tree.growth.nodes)
        known = keeper.live_paths()
        for number in session._stream_numbers:
            assert tuple(trie.token(node) for node in trie.path(number)) in known


async def play(seed: int, mode: str, num_slots: int, num_actions: int, *, looks_up: bool) -> None:
    random = Random(seed)
    runner = FakeDraft(num_slots)
    growth = GrowthSettings(max_n_beams=3, max_beam_len=3, max_branch_width=3, max_budget=8)
    proactive = GrowthSettings(max_n_beams=2, max_beam_len=2, max_branch_width=2, max_budget=5, decay=0.95)
    payoff = PayoffSettings(min_accepted=0.2, window=6, rest=2, trial=2)
    drafter = make_drafter(
        runner,
        DraftingSettings(
            mode=mode,  # type: ignore[arg-type]
            growth=growth,
            proactive=proactive,
            payoff=payoff,
            looks_up=looks_up,
        ),
    )
    keepers: list[TrieKeeper] = []

    def verdict() -> None:
        keeper = random.choice(keepers)
        paths = sorted(keeper.live_paths())
        tokens = list(random.choice(paths)) if paths and random.random() < 0.7 else []
        if not tokens or random.random() < 0.7:
            tokens.append(random.randrange(VOCAB_SIZE))
        keeper.commit(tokens)

    def act() -> None:
        choice = random.random()
        if not keepers or (choice < 0.1 and len(keepers) < 4):
            prompt = [random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, 12))]
            sampling = SamplingParams(
                temperature=random.choice([0.0, 1.0]), seed=seed, max_tokens=40, presence_penalty=random.choice([0, 1])
            )
            if looks_up:
                prompt += prompt[: random.randint(0, len(prompt))]
            keepers.append(
                TrieKeeper(
                    drafter,
                    prompt,
                    sampling,
                    eos_ids=[0],
                    max_live_nodes=random.choice([4, 64]),
                    prediction=[random.randrange(VOCAB_SIZE) for _ in range(random.choice([0, 20]))],
                )
            )
        elif choice < 0.6:
            verdict()
        elif choice < 0.7:
            random.choice(keepers).reconnect()
        elif choice < 0.8:
            random.choice(keepers).handle.pause()
        elif choice < 0.95:
            random.choice(keepers).handle.resume()
        else:
            keepers.pop(random.randrange(len(keepers))).handle.close()

    for _ in range(num_actions):
        if random.random() < 0.5:
            act()
        runner.during_forward = (lambda batch: act()) if random.random() < 0.2 else (lambda batch: None)
        drafter.step()
        await asyncio.sleep(0)
        check(drafter, keepers)
    for keeper in keepers:
        keeper.handle.close()
    drafter.step()
    drafter.check_integrity()
    assert drafter.num_sessions == 0


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    mode=st.sampled_from(["streamed", "off", "included", "excluded"]),
    num_slots=st.sampled_from([40, 120, 2000]),
)
def test_any_interleaving(seed: int, mode: str, num_slots: int) -> None:
    asyncio.run(play(seed, mode, num_slots, num_actions=50, looks_up=False))


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), num_slots=st.sampled_from([40, 120, 2000]))
def test_any_interleaving_with_lookup(seed: int, num_slots: int) -> None:
    asyncio.run(play(seed, "streamed", num_slots, num_actions=50, looks_up=True))
