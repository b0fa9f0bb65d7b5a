"""Padded and paced frames between real processes: answers are the same, and every byte counted is a whole frame's."""

import asyncio
from pathlib import Path

from processes import Ask, Edge, Verifier, nothing_held, running

from specedge.wire.channel import FRAMING_BYTES

ASKS = [Ask("Once upon a time there was a", seed=seed, max_tokens=40) for seed in range(3)]
SHAPE = ("--pad-frames", "256", "--frame-interval-ms", "10")


async def answers_of(edge: Edge) -> list[str]:
    async with edge.client() as client:
        return await asyncio.gather(*(ask.streamed(client) for ask in ASKS))


async def test_answers_are_the_same_whichever_side_is_shaped(tmp_path: Path) -> None:
    plain, shaped = tmp_path / "plain", tmp_path / "shaped"
    plain.mkdir()
    shaped.mkdir()
    verifiers = Verifier(plain, "--num-kv-blocks", "128"), Verifier(shaped, "--num-kv-blocks", "128", *SHAPE)
    slots = ("--num-draft-slots", "2048")
    edges = {
        "neither": Edge(plain, "neither", verifiers[0], *slots),
        "the verifier": Edge(shaped, "verifier", verifiers[1], *slots),
        "both": Edge(shaped, "both", verifiers[1], *slots, *SHAPE),
    }
    with running(*verifiers, *edges.values()):
        answers = {name: await answers_of(edge) for name, edge in edges.items()}
        assert all(each == answers["neither"] for each in answers.values()), answers
        # A verifier that is not paced may be through with an answer before the first draft comes.
        for name in ("the verifier", "both"):
            assert await edges[name].sample("specedge_edge_drafted_nodes_total") > 0, name
        num_bytes = await verifiers[1].sample("specedge_verifier_wire_bytes_total", direction="down")
        assert num_bytes > 0 and num_bytes % (256 + FRAMING_BYTES) == 0
        await nothing_held(*verifiers, *edges.values())
