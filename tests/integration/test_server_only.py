"""The system `server-only` as its users run it: a verifier that drafts beside its target, an edge without drafts."""

import asyncio
import json
from pathlib import Path

from processes import Ask, Edge, Verifier, nothing_held, running

ASKS = [
    Ask("Tell me a tale about a fox who wanted to see the sea.", seed=seed, max_tokens=40, temperature=temperature)
    for seed, temperature in ((1, 0.0), (2, 0.7), (3, 1.0), (4, 0.7))
]


async def test_texts_equal_plain_decoding_and_steps_are_logged(tmp_path: Path) -> None:
    log, plain_folder, own_folder = tmp_path / "steps.jsonl", tmp_path / "plain", tmp_path / "own"
    plain_folder.mkdir()
    own_folder.mkdir()
    blocks = ("--num-kv-blocks", "256")
    plain = Verifier(plain_folder, *blocks, "--system", "autoregressive")
    local = Verifier(own_folder, *blocks, "--system", "server-only", "--step-log", str(log))
    no_drafts = ("--draft-model", "none", "--lookup", "off")
    edges = [Edge(tmp_path, name, verifier, *no_drafts) for name, verifier in (("a", plain), ("b", local))]
    with running(plain, local, *edges):
        texts = []
        for edge in edges:
            async with edge.client() as client:
                texts.append(await asyncio.gather(*(ask.whole(client) for ask in ASKS)))
        await nothing_held(local)
        num_trees = await local.sample("specedge_verifier_verifications_total")
        num_drafted = await local.sample("specedge_verifier_draft_nodes_total")
        num_looked_up = await local.sample("specedge_verifier_confirmed_lookup_draft_nodes_total", source="lookup")

    assert texts[0] == texts[1]
    assert num_trees > 0 and num_drafted > 0, "nothing was drafted"
    assert num_looked_up > 0, "a greedy tale of this target repeats itself"
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(step["num_committed"] for step in steps) == sum(ask.max_tokens for ask in ASKS)
    assert sum(step["num_nodes"] for step in steps) > 0 and sum(step["draft_ms"] for step in steps) > 0
    assert sum(len(step["accepted_depths"]) for step in steps) == num_trees
