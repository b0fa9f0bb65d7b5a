"""Paced forwards: they last as long as their curve says, and those that cannot are known."""

import time
from pathlib import Path

import torch

from specedge.model.batch import PackedBatch, chain
from specedge.model.embedded import EMBEDDED_NAME, resolve_model
from specedge.model.loader import load_model
from specedge_bench.curves import Grid, StepCurve
from specedge_bench.pace.forward_log import Forward, ForwardLog, read_forwards
from specedge_bench.pace.pace import Pace
from specedge_bench.pace.process import runners
from specedge_bench.pace.runner import PacedRunner


def curve(one_row_s: float, hundred_rows_s: float) -> StepCurve:
    return StepCurve("c", "d", "m", "float32", "test", Grid((1, 100), (0,), ((one_row_s,), (hundred_rows_s,))))


class InstantRunner(PacedRunner):
    def compute(self, batch: PackedBatch) -> torch.Tensor:
        return torch.zeros(len(batch.logits_rows), self.vocab_size)


class SlowRunner(InstantRunner):
    def compute(self, batch: PackedBatch) -> torch.Tensor:
        time.sleep(0.02)
        return super().compute(batch)


def model() -> object:
    return load_model(resolve_model(EMBEDDED_NAME, "draft"), "cpu", "auto")


def test_a_forward_lasts_as_long_as_its_rows_take() -> None:
    seen: list[Forward] = []
    runner = InstantRunner(model(), 256, curve=curve(0.01, 0.109), on_forward=seen.append)
    runner.forward(chain(1))
    runner.forward(chain(41))

    assert [(forward.num_rows, forward.num_sessions) for forward in seen] == [(1, 1), (41, 1)]
    assert [round(forward.paced_s, 6) for forward in seen] == [0.01, 0.05]
    assert all(forward.computed_s < forward.paced_s <= forward.lasted_s for forward in seen)
    assert not any(forward.is_late for forward in seen)


def test_a_computation_that_takes_longer_than_its_pace_is_late() -> None:
    seen: list[Forward] = []
    runner = SlowRunner(model(), 256, curve=curve(0.01, 0.01), on_forward=seen.append)
    runner.forward(chain(3))

    assert seen[0].is_late
    assert seen[0].lasted_s >= seen[0].computed_s >= 0.02


def test_a_log_of_several_processes_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "forwards.jsonl"
    assert read_forwards(path) == []
    target, draft = ForwardLog(path, "target"), ForwardLog(path, "draft")
    first, second = Forward(1.0, 4, 2, 0.1, 0.2, 0.25), Forward(2.0, 1, 1, 0.3, 0.2, 0.3)
    target(first)
    draft(second)
    with path.open("a") as file:
        file.write('{"started_s": 3.0, "num_')

    assert [forward.model for forward in read_forwards(path)] == ["target", "draft"]
    assert [forward.computed_s for forward in read_forwards(path)] == [0.1, 0.3]
    assert [forward.is_late for forward in read_forwards(path)] == [False, True]


def test_a_verifier_keeps_the_pace_of_the_target_first_and_of_the_draft_then(tmp_path: Path) -> None:
    log = tmp_path / "forwards.jsonl"
    make = runners(Pace("2ms", "1ms", "modelled", log), "verifier")
    for _ in range(2):
        runner = make(model(), 64)
        runner.forward(chain(1))
    edge = runners(Pace("2ms", "1ms", "modelled", log), "edge")(model(), 64)
    edge.forward(chain(1))

    assert [(forward.model, forward.paced_s) for forward in read_forwards(log)] == [
        ("target", 0.002),
        ("draft", 0.001),
        ("draft", 0.001),
    ]


def test_the_command_of_a_paced_service_names_its_curves() -> None:
    command = Pace("30ms+0.1ms", "5ms").command(["edge", "--port", "0"])
    assert command[1:3] == ["-m", "specedge_bench.pace.process"]
    assert command[4:] == ["embedded", "30ms+0.1ms", "5ms", "-", "edge", "--port", "0"]
