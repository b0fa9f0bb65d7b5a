"""Drafting beside the target: exact, bounded, and only as deep as it pays."""

from dataclasses import replace

import pytest
from fake_draft import VOCAB_SIZE as DRAFT_VOCAB_SIZE
from fake_draft import FakeDraft
from fake_target import VOCAB_SIZE, FakeTarget, answer

from specedge.block_pool import BlockPool
from specedge.drafting.draft_model import RankedDraftModel
from specedge.drafting.draft_session import DraftingSettings
from specedge.drafting.growth import GrowthSettings
from specedge.drafting.ranking import ChildRanking
from specedge.sampling import SamplingParams
from specedge.wire.messages import DraftNodes, OpenSession, ServerInfo, Verdict
from specedge_verifier.core import EngineCore
from specedge_verifier.draft_depth import DraftDepth
from specedge_verifier.local_drafts import LocalDrafts
from specedge_verifier.scheduler import Scheduler, SchedulerLimits
from specedge_verifier.step_time import StepTime

INFO = ServerInfo("fake", "f", VOCAB_SIZE, 96, 24, (), 4, "0")
GROWTH = GrowthSettings(max_n_beams=8, max_beam_len=4, max_branch_width=3, max_budget=12)
PROMPTS = ([1, 2, 3, 4, 0, 2, 1], [4, 4, 1], [1, 2, 3, 4, 0, 3])


class Deployment:
    """An engine that drafts for itself, its draft model and its clock."""

    def __init__(self, num_blocks: int = 64, num_draft_slots: int = 512, looks_up: bool = False) -> None:
        self.now_s = 0.0
        self.runner = FakeDraft(num_draft_slots)
        settings = DraftingSettings(growth=GROWTH, looks_up=looks_up)
        model = RankedDraftModel(self.runner, ChildRanking.of(self.runner, settings, vocab_size=VOCAB_SIZE))
        self.drafts = LocalDrafts(model, settings, num_draft_slots, "local/fake", self.tick)
        limits = SchedulerLimits(max_batch_size=4, max_num_batched_tokens=64, max_tree_nodes=12)
        self.pool = BlockPool(num_blocks, 4)
        scheduler = Scheduler(self.pool, limits, StepTime(64, [(1, 0.02), (64, 0.021)]))
        self.core = EngineCore(scheduler, FakeTarget(), INFO, self.tick, self.drafts)

    def tick(self) -> float:
        self.now_s += 0.0001
        return self.now_s

    def open(self, handle: int, prompt: list[int], max_tokens: int = 24, **sampling: float) -> None:
        params = replace(SamplingParams(temperature=0.0, max_tokens=max_tokens), **sampling)
        self.core.open(handle, OpenSession(str(handle), tuple(prompt), (), params, "f", ""))

    def run(self) -> dict[int, list[int]]:
        texts: dict[int, list[int]] = {}
        for _ in range(400):
            if not self.core.num_sessions:
                break
            for handle, event in self.core.step().events:
                if isinstance(event, Verdict):
                    texts.setdefault(handle, []).extend(event.token_ids)
        return texts


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("num_blocks", [64, 26])
def test_texts_are_those_of_plain_decoding_and_everything_is_freed(num_blocks: int, penalty: float) -> None:
    deployment = Deployment(num_blocks)
    for handle, prompt in enumerate(PROMPTS):
        deployment.open(handle, prompt, repetition_penalty=penalty)
    texts = deployment.run()

    assert texts == {handle: answer(prompt, 24) for handle, prompt in enumerate(PROMPTS)}
    assert deployment.drafts.core.stats.num_drafted > 20, "the draft model was hardly used"
    assert deployment.drafts.core.num_sessions == 0
    deployment.drafts.core.check_integrity()
    assert deployment.pool.num_held == 0
    assert DRAFT_VOCAB_SIZE > VOCAB_SIZE, "the draft model knows tokens that the target does not"


@pytest.mark.parametrize("num_blocks", [64, 26])
def test_with_lookup_texts_are_the_same_and_everything_is_freed(num_blocks: int) -> None:
    deployment = Deployment(num_blocks, looks_up=True)
    for handle, prompt in enumerate(PROMPTS):
        deployment.open(handle, prompt)
    texts = deployment.run()

    assert texts == {handle: answer(prompt, 24) for handle, prompt in enumerate(PROMPTS)}
    assert deployment.drafts.core.stats.lookup.confirmed["lookup"] > 2, "with five tokens some agree by chance"
    deployment.drafts.core.check_integrity()
    assert deployment.pool.num_held == 0


def test_looked_up_nodes_are_verified_where_no_draft_step_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(looks_up=True)
    monkeypatch.setattr(deployment.drafts.depth, "decide", lambda num_sessions, step_time: 0)
    deployment.open(0, PROMPTS[0])
    num_nodes = 0
    while deployment.core.num_sessions:
        report = deployment.core.step().report
        assert report is not None
        num_nodes += report.num_nodes
    assert num_nodes > 5
    assert deployment.drafts.core.stats.num_steps == 0
    assert deployment.drafts.core.stats.lookup.confirmed["lookup"] > 0


def test_what_is_looked_up_tells_nothing_about_what_draft_steps_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the draft model knows nothing, so that whatever is accepted was looked up."""
    deployment = Deployment(looks_up=True)
    monkeypatch.setattr(deployment.drafts._model, "children", lambda step: [])
    depth = deployment.drafts.depth
    learnt: list[tuple[int, int]] = []
    verified = depth.verified
    monkeypatch.setattr(depth, "verified", lambda steps, nodes, accepted: learnt.append((nodes, accepted)))
    deployment.open(0, PROMPTS[0] * 3, max_tokens=40)
    deployment.run()
    assert deployment.drafts.core.stats.lookup.confirmed["lookup"] > 5
    assert all(accepted == 0 for _, accepted in learnt)
    for _, accepted in learnt:
        verified(4, 1, accepted)
    assert learnt and depth.acceptance[0] < 0.5


def test_drafts_of_edges_are_left_alone() -> None:
    deployment = Deployment()
    deployment.open(0, PROMPTS[0])
    assert deployment.core.draft(0, DraftNodes([99], [50], [0.0])) == []
    assert deployment.run()[0] == answer(PROMPTS[0], 24)


def test_a_session_closed_in_between_frees_its_draft_slots() -> None:
    deployment = Deployment()
    for handle, prompt in enumerate(PROMPTS):
        deployment.open(handle, prompt)
    for _ in range(4):
        deployment.core.step()
    deployment.core.close(1)
    assert 1 not in deployment.drafts.core.keys
    assert set(deployment.run()) == {0, 2}
    deployment.drafts.core.check_integrity()


def test_the_report_tells_what_drafting_took() -> None:
    deployment = Deployment()
    deployment.open(0, PROMPTS[0])
    deployment.core.step()  # the prompt; nothing can be drafted before
    report = deployment.core.step().report
    assert report is not None and report.draft_s > 0 and report.num_nodes > 0
    assert report.step_s > report.draft_s


def flat(seconds: float) -> StepTime:
    return StepTime(4096, [(1, seconds), (4096, seconds)])


def observed(share: float, draft_s: float, nodes_per_depth: int = 4) -> DraftDepth:
    """A depth that has seen trees of depth 8 of which each further token is accepted with `share`."""
    depth = DraftDepth(8)
    depth.drafted(draft_s)
    for tree in range(400):
        reached = 0
        while reached < 8 and (tree * 0.754877 + reached * 0.569840) % 1.0 < share:
            reached += 1
        depth.verified(8, 8 * nodes_per_depth, reached)
    return depth


def test_before_anything_is_known_the_depth_is_the_greatest() -> None:
    assert DraftDepth(6).decide(1, flat(0.03)) == 6
    assert DraftDepth(6).decide(0, flat(0.03)) == 0


def test_worthless_drafts_and_dear_drafts_are_given_up() -> None:
    assert observed(0.0, 0.005).decide(4, flat(0.03)) == 0
    assert observed(0.9, 0.1).decide(4, flat(0.03)) == 0


def test_the_depth_grows_with_what_a_step_costs() -> None:
    depths = [observed(0.8, 0.005).decide(4, flat(step_s)) for step_s in (0.005, 0.03, 0.3)]
    assert depths == sorted(depths) and depths[0] < depths[-1]


def test_where_rows_are_dear_drafts_are_not_verified() -> None:
    dear = StepTime(4096, [(64, 0.03), (128, 0.06), (4096, 1.92)])
    assert observed(0.7, 0.005).decide(1, flat(0.03)) > 0
    assert observed(0.7, 0.005, nodes_per_depth=8).decide(64, dear) == 0


def test_a_depth_given_up_is_tried_again() -> None:
    depth = observed(0.0, 0.005)
    decisions = [depth.decide(4, flat(0.03)) for _ in range(64)]
    assert 0 < sum(decisions) <= 4


def test_a_session_that_still_caught_up_did_not_offer_what_others_did(monkeypatch) -> None:
    """Three texts of 60 tokens are more than a draft step catches up with: the last one's tree is shallower."""
    deployment = Deployment()
    offered: list[int] = []
    monkeypatch.setattr(deployment.drafts.depth, "verified", lambda depth, nodes, accepted: offered.append(depth))
    for handle in range(3):
        deployment.open(handle, [1, 2, 3, 4, 0] * 12)
    while not offered:
        deployment.core.step()

    assert min(offered) < max(offered)
