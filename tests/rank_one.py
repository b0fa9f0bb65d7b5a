"""Rank 1 of two, as a program: follows rank 0 through one model after the other, which are folders and an engine."""

import os
import sys
from pathlib import Path

import torch

from specedge.model.engines import load_for, make_runner
from specedge.model.ranks import RankPlace, Ranks
from specedge_verifier.mirrored import follow
from specedge_verifier.rank_pulse import RankPulse

PULSE_TIMEOUT_S = 1.0


def main(engine: str, num_slots: int, folders: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(RankPlace.of(os.environ, 2), torch.device("cpu"))
    for folder in folders:
        follow(make_runner(load_for(engine, str(Path(folder)), "cpu", ranks=ranks), num_slots), ranks)
    pulse = RankPulse(PULSE_TIMEOUT_S, lambda reason: os._exit(3))
    pulse.stop()
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
