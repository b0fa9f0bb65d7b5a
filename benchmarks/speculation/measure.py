"""Measures one cell: requests through the edge's HTTP API, and what both services' metrics grew by meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import httpx

from benchmarks.speculation.cells import AUTOREGRESSIVE, Cell
from benchmarks.speculation.client import Answer, Ask, ask_all
from benchmarks.speculation.deployment import Edge
from benchmarks.speculation.scrape import growth, scrape

_SETTLING_S = 0.1  # what a request leaves behind is over after this


@dataclass(frozen=True, slots=True)
class Result:
    """One cell's numbers.

    Attributes:
        inter_token_ms: median over the requests of the mean time between tokens after the first burst.
        first_token_ms: median over the requests.
        tokens_per_s: of all users together.
        tokens_per_verification: each verdict counts, with or without a tree.
        tree_share: share of the verdicts for which there were draft nodes.
        nodes_verified, nodes_sent: draft nodes per verdict.
        step_ms, draft_step_ms: mean duration of a verifier's and of a drafter's step.
        forwards_per_token: draft forwards per generated token, all users together.
        rows_per_forward, sessions_per_forward: of draft forwards.
        draft_nodes_per_s: nodes added to draft trees, all users together.
        payload_up, payload_down: protobuf bytes per verdict.
        wire_up, wire_down: TCP payload bytes per verdict, gRPC's framing included.
    """

    section: str
    mode: str
    batch_type: str
    rtt_ms: int
    num_users: int
    num_requests: int
    inter_token_ms: float
    first_token_ms: float
    tokens_per_s: float
    tokens_per_verification: float
    tree_share: float
    nodes_verified: float
    nodes_sent: float
    step_ms: float
    draft_step_ms: float
    forwards_per_token: float
    rows_per_forward: float
    sessions_per_forward: float
    draft_nodes_per_s: float
    payload_up: float
    payload_down: float
    wire_up: float
    wire_down: float


@dataclass(slots=True)
class Tally:
    """What the repetitions of a cell add up to."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    edge: Counter[str] = field(default_factory=Counter)
    verifier: Counter[str] = field(default_factory=Counter)
    wire_up: int = 0
    wire_down: int = 0

    async def add(
        self, client: httpx.AsyncClient, edge: Edge, cell: Cell, prompts: Sequence[str], template: Ask
    ) -> None:
        """Sends one request for each user at once.

        Args:
            client: to send with.
            edge: the cell's.
            cell: what is measured.
            prompts: one for each user.
            template: the requests' other properties; its seed is the first user's.
        """
        edge.proxy.rtt_s = cell.rtt_ms / 1e3
        requests = [
            Ask(prompt, template.temperature, template.seed + index, template.max_tokens, cell.mode != AUTOREGRESSIVE)
            for index, prompt in enumerate(prompts)
        ]
        edge_before = await scrape(client, f"{edge.url}/metrics")
        verifier_before = await scrape(client, edge.verifier_metrics_url)
        up, down = edge.proxy.num_bytes_up, edge.proxy.num_bytes_down
        answers, seconds = await ask_all(client, edge.url, requests)
        await asyncio.sleep(_SETTLING_S)
        self.answers += answers
        self.seconds += seconds
        self.wire_up += edge.proxy.num_bytes_up - up
        self.wire_down += edge.proxy.num_bytes_down - down
        self.edge.update(growth(edge_before, await scrape(client, f"{edge.url}/metrics")))
        self.verifier.update(growth(verifier_before, await scrape(client, edge.verifier_metrics_url)))

    def result(self, section: str, cell: Cell) -> Result:
        """The numbers."""
        edge = {name.removeprefix("specedge_edge_"): value for name, value in self.edge.items()}
        num_verdicts = edge["inter_burst_seconds_count"] + len(self.answers)
        num_forwards = edge["draft_step_seconds_count"]
        step = "specedge_verifier_step_seconds_{}{{phase=all}}"
        return Result(
            section=section,
            mode=cell.mode,
            batch_type=cell.batch_type,
            rtt_ms=cell.rtt_ms,
            num_users=cell.num_users,
            num_requests=len(self.answers),
            inter_token_ms=1e3 * median(answer.inter_token_s for answer in self.answers),
            first_token_ms=1e3 * median(answer.first_s for answer in self.answers),
            tokens_per_s=edge["generated_tokens_total"] / self.seconds,
            tokens_per_verification=edge["generated_tokens_total"] / num_verdicts,
            tree_share=edge["verifications_total"] / num_verdicts,
            nodes_verified=edge["verified_draft_nodes_total"] / num_verdicts,
            nodes_sent=edge["drafted_nodes_total"] / num_verdicts,
            step_ms=1e3 * _ratio(self.verifier[step.format("sum")], self.verifier[step.format("count")]),
            draft_step_ms=1e3 * _ratio(edge["draft_step_seconds_sum"], num_forwards),
            forwards_per_token=num_forwards / edge["generated_tokens_total"],
            rows_per_forward=_ratio(edge["draft_rows_total"], num_forwards),
            sessions_per_forward=_ratio(edge["draft_session_steps_total"], num_forwards),
            draft_nodes_per_s=edge["draft_nodes_total"] / self.seconds,
            payload_up=edge["verifier_bytes_total{direction=up}"] / num_verdicts,
            payload_down=edge["verifier_bytes_total{direction=down}"] / num_verdicts,
            wire_up=self.wire_up / num_verdicts,
            wire_down=self.wire_down / num_verdicts,
        )


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0
