"""Bytes per verification, counted by a TCP proxy between a real gRPC client and server: everything is included."""

from contextlib import aclosing

from fakes import FINGERPRINT, FakeEngine, TreeDrafts, expected_answer, serving
from tcp_proxy import TcpProxy

from edge_agent.generation import GenerationRequest, GenerationService
from edge_agent.verifier_client import VerifierClient
from specedge.sampling import SamplingParams

PROMPT = tuple(range(100_000, 100_064))
NUM_TOKENS = 600


async def bytes_per_verification(drafts: TreeDrafts, engine: FakeEngine) -> tuple[float, float, int]:
    """Runs one answer and returns average bytes up and down per verdict, and the number of verdicts."""
    async with serving(engine) as server:
        proxy = TcpProxy(server.port)
        await proxy.start()
        client = VerifierClient(f"127.0.0.1:{proxy.port}")
        service = GenerationService(client, drafts, FINGERPRINT)
        await service.start()
        token_ids: list[int] = []
        request = GenerationRequest("bytes", PROMPT, SamplingParams(max_tokens=NUM_TOKENS))
        async with service.generate(request) as bursts, aclosing(bursts):
            num_bursts = 0
            async for burst in bursts:
                token_ids += burst.token_ids
                num_bursts += 1
        await client.close()
        await proxy.close()
    assert token_ids == expected_answer(PROMPT, NUM_TOKENS)
    return proxy.num_bytes_up / num_bursts, proxy.num_bytes_down / num_bursts, num_bursts


async def test_a_synchronous_round_of_32_nodes_takes_300_bytes_up_and_100_down() -> None:
    engine = FakeEngine(patience_s=5.0)
    up, down, num_rounds = await bytes_per_verification(TreeDrafts(num_nodes=32, num_right=4), engine)
    print(f"{num_rounds} rounds: {up:.1f} B up, {down:.1f} B down per verification")
    assert num_rounds == NUM_TOKENS // 5, "every round must verify a whole tree"
    assert engine.num_nodes_received >= 32 * num_rounds
    assert up <= 300
    assert down <= 100


async def test_a_streamed_round_of_4_messages_takes_1_kb_up() -> None:
    engine = FakeEngine(patience_s=5.0, step_s=0.012)
    drafts = TreeDrafts(num_nodes=48, num_right=4, num_messages=4, gap_s=0.002)
    up, down, num_rounds = await bytes_per_verification(drafts, engine)
    print(f"{num_rounds} rounds: {up:.1f} B up, {down:.1f} B down per verification")
    assert engine.num_nodes_received >= 40 * num_rounds, "most of each tree must have been sent before its verdict"
    assert up <= 1000
    assert down <= 100
