"""Rows of a benchmark run with plain values, and a whole synthetic run for what reads run folders."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from specedge_bench.records import CellRecord, RequestRecord, RunInfo, StepRecord, cell_id
from specedge_bench.run_folder import RunFolder


def run_info(**changes: Any) -> RunInfo:
    values: dict[str, Any] = {
        "source": "measured",
        "created": "2030-01-02T03:04:05+00:00",
        "machine": {"cpu": "two cores"},
        "target_model": "target",
        "draft_model": "draft",
        "network_method": "proxy",
        "options": {"max_new_tokens": 32},
        "prices": {"A100-40": 0.001, "RTX 4090": 0.0001},
        "verifier_gpu": "A100-40",
        "edge_gpu": "RTX 4090",
    }
    return RunInfo(**{**values, **changes})


def request(cell: str = "specedge/wan/closed-1", **changes: Any) -> RequestRecord:
    system, network, load = cell.split("/")
    values: dict[str, Any] = {
        "cell": cell,
        "system": system,
        "network": network,
        "load": load,
        "repetition": 0,
        "edge": 0,
        "user": 0,
        "prompt": "p0",
        "num_prompt_tokens": 10,
        "seed": 1,
        "status": "ok",
        "scheduled_s": 1.0,
        "sent_s": 1.0,
        "bursts": ((1.5, 1), (1.7, 2), (2.0, 3)),
        "finished_s": 2.0,
        "finish_reason": "stop",
        "num_tokens": 6,
        "digest": "d",
    }
    return RequestRecord(**{**values, **changes})


def cell_row(cell: str = "specedge/wan/closed-1", **changes: Any) -> CellRecord:
    system, network, load = cell.split("/")
    values: dict[str, Any] = {
        "cell": cell,
        "system": system,
        "network": network,
        "load": load,
        "repetition": 0,
        "num_users": 1,
        "num_edges": 1,
        "wall_s": 2.0,
        "rtt_ms_configured": 14.0,
    }
    return CellRecord(**{**values, **changes})


def step(cell: str = "specedge/wan/closed-1", **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "cell": cell,
        "repetition": 0,
        "started_s": 1.0,
        "num_sessions": 1,
        "num_prefill": 0,
        "num_nodes": 4,
        "num_accepted": 2,
        "num_committed": 3,
        "num_moved": 1,
    }
    return StepRecord(**{**values, **changes})


def write_synthetic_run(path: Path, num_repetitions: int = 3, speed: float = 1.0, **changes: Any) -> None:
    """A run of three systems, two networks and two loads: rounds of verification drawn from a fixed seed.

    `speed` above 1 shortens every round.
    """
    noise = np.random.default_rng(7)
    with RunFolder.create(path, run_info(**changes)) as folder:
        for repetition in range(num_repetitions):
            for network, rtt_s in (("wan", 0.014), ("far", 0.060)):
                for num_users in (1, 8):
                    for system in ("autoregressive", "server-only", "specedge"):
                        cell = cell_id(system, network, f"closed-{num_users}")
                        _write_cell(folder, cell, repetition, rtt_s, num_users, speed, noise)


def _write_cell(
    folder: RunFolder, cell: str, repetition: int, rtt_s: float, users: int, speed: float, noise: np.random.Generator
) -> None:
    system = cell.split("/")[0]
    steps: list[StepRecord] = []
    counts = {"num_verifications": 0, "num_trees": 0, "num_nodes_verified": 0, "num_accepted": 0}
    by_depth = [0] * 6
    last_s = 0.0
    for user in range(users):
        for turn in range(2):
            prompt = f"p{user}-{turn}"
            sent_s = now_s = last_s if turn else 0.002 * user
            bursts: list[tuple[float, int]] = []
            while sum(count for _, count in bursts) < 32:
                # Only an edge's round crosses the network; the other two stream their tokens over it.
                hop_s = rtt_s if system == "specedge" else 0.0
                step_ms = (9.0 + 0.8 * users + float(noise.exponential(1.5))) / speed
                accepted = 0 if system == "autoregressive" else int(min(6, noise.geometric(0.32) - 1))
                started_s = now_s + hop_s / 2 + (0.004 if system != "autoregressive" else 0.0)
                steps.append(
                    step(
                        cell,
                        repetition=repetition,
                        started_s=started_s,
                        num_sessions=users,
                        forward_ms=step_ms,
                        schedule_ms=0.2,
                        sample_ms=0.4,
                        settle_ms=0.3,
                        queue_ms=(0.4 * users,),
                    )
                )
                now_s = started_s + step_ms / 1e3 + 0.0009 + hop_s / 2
                bursts.append((now_s if hop_s else now_s + rtt_s / 2, accepted + 1))
                counts["num_verifications"] += 1
                if system != "autoregressive":
                    counts["num_trees"] += 1
                    counts["num_nodes_verified"] += 8
                    counts["num_accepted"] += accepted
                    for depth in range(accepted):
                        by_depth[depth] += 1
            last_s = max(last_s, bursts[-1][0])
            folder.append_request(
                request(
                    cell,
                    repetition=repetition,
                    user=user,
                    prompt=prompt,
                    scheduled_s=sent_s,
                    sent_s=sent_s,
                    bursts=tuple(bursts),
                    finished_s=bursts[-1][0],
                    num_tokens=sum(count for _, count in bursts),
                    digest=hashlib.sha256(prompt.encode()).hexdigest(),
                )
            )
    folder.append_steps(steps)
    folder.append_cell(
        cell_row(
            cell,
            repetition=repetition,
            num_users=users,
            wall_s=last_s,
            verifier_busy_s=sum(row.forward_ms for row in steps) / 1e3 / users,
            draft_busy_s=0.0 if system == "autoregressive" else 0.3 * last_s,
            accepted_by_depth=tuple(by_depth) if counts["num_trees"] else (),
            drafted_nodes=2 * counts["num_nodes_verified"],
            wasted={"rejected": counts["num_nodes_verified"] - counts["num_accepted"], "trimmed": 12}
            if counts["num_trees"]
            else {},
            guesses_hit=counts["num_trees"] // 3 if system == "specedge" else 0,
            guesses_missed=counts["num_trees"] - counts["num_trees"] // 3 if system == "specedge" else 0,
            bytes_up=180 * counts["num_verifications"] if system == "specedge" else 0,
            bytes_down=40 * counts["num_verifications"],
            rtt_ms_configured=1e3 * rtt_s,
            rtt_ms_measured=1e3 * rtt_s + 0.4,
            draft_on_verifier=system == "server-only",
            **counts,
        )
    )
