"""How well drafts agree with a target: per text position, what the draft claims and where the target's token stands.

A trace holds, for consecutive positions of real answers, the log-probabilities a draft claimed for its best children
and the rank the target's token had among them. A simulated session replays it from an offset of its own, so that runs
of easy and hard text stay together. What a draft claims off the true path is not recorded: claims of another position
stand in for it, and none of its children is the target's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from random import Random
from typing import Any

from specedge.errors import SettingsError

NOT_AMONG = -1
"""Rank of a target's token that is not among the draft's best children."""

SCHEMA_VERSION = 1
HONEST_AGREEMENT = (0.86, 0.06, 0.03, 0.02)


class TraceError(SettingsError):
    """An acceptance trace is missing, malformed, or of a newer schema."""


@dataclass(frozen=True, slots=True)
class AcceptanceTrace:
    """Consecutive positions of one draft and one target.

    Attributes:
        name: for reports.
        assumption: where it is from, or what it supposes.
        log_probs: [num_positions][width] claimed log-probabilities of the best children, best first.
        ranks: [num_positions] index of the target's token among them, or NOT_AMONG.
    """

    name: str
    assumption: str
    log_probs: tuple[tuple[float, ...], ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ranks or len(self.ranks) != len(self.log_probs):
            raise TraceError(
                f"trace {self.name}: {len(self.ranks)} ranks for {len(self.log_probs)} positions; as many are needed, "
                "and at least one"
            )
        for position, (claims, rank) in enumerate(zip(self.log_probs, self.ranks, strict=True)):
            if not claims or max(claims) > 0 or list(claims) != sorted(claims, reverse=True):
                raise TraceError(f"trace {self.name}: claims at {position} are {claims}; wanted: falling, at most 0")
            if not NOT_AMONG <= rank < len(claims):
                raise TraceError(f"trace {self.name}: rank {rank} at {position} is not below {len(claims)}")

    @property
    def agreement(self) -> list[float]:
        """[width] share of the positions whose target's token is the draft's first, second ... choice."""
        width = max(len(claims) for claims in self.log_probs)
        return [self.ranks.count(rank) / len(self.ranks) for rank in range(width)]


def synthetic_trace(
    agreement: Sequence[float] = HONEST_AGREEMENT, *, persistence: float = 0.0, num_positions: int = 20_000
) -> AcceptanceTrace:
    """A draft that agrees as often as it claims.

    Args:
        agreement: probabilities that the target's token is the draft's first, second ... choice; falling, below 1 in
            sum. The draft claims exactly these at every position.
        persistence: probability that a position has the rank of the one before; else it is drawn anew. The shares
            stay, runs of agreement and of disagreement get longer.
    """
    if not agreement or min(agreement) <= 0 or sum(agreement) > 1 or list(agreement) != sorted(agreement, reverse=True):
        raise TraceError(f"agreement is {list(agreement)}; wanted: falling probabilities with a sum of at most 1")
    if not 0 <= persistence < 1:
        raise TraceError(f"persistence is {persistence}; wanted: at least 0 and below 1")
    random = Random(1)
    outcomes = [*range(len(agreement)), NOT_AMONG]
    weights = [*agreement, max(0.0, 1 - sum(agreement))]
    ranks: list[int] = []
    for drawn in random.choices(outcomes, weights, k=num_positions):
        ranks.append(ranks[-1] if ranks and random.random() < persistence else drawn)
    shares = "/".join(f"{share:g}" for share in agreement)
    runs = f", rank kept with probability {persistence:g}" if persistence else ", positions independent"
    claims = tuple(log(share) for share in agreement)
    return AcceptanceTrace(
        name=f"synthetic:{shares}" + (f"@{persistence:g}" if persistence else ""),
        assumption=f"synthetic: the target's token is the draft's n-th choice with {shares}{runs}; claims are honest",
        log_probs=(claims,) * num_positions,
        ranks=tuple(ranks),
    )


def trace_folders() -> tuple[Path, ...]:
    """Where recorded traces lie: beside this package's modules when installed, in `benchmarks/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "traces", package.parents[1] / "benchmarks" / "traces"


def list_traces() -> list[str]:
    """Names of the recorded traces of this installation."""
    return sorted({path.stem for folder in trace_folders() if folder.is_dir() for path in folder.glob("*.json")})


def load_trace(name: str) -> AcceptanceTrace:
    """A trace by the path of its file, by name, or `synthetic[:0.86/0.06/0.03/0.02][@persistence]`.

    Raises:
        TraceError: there is no such trace, or it is malformed; names what is known.
    """
    if name.partition(":")[0].partition("@")[0] == "synthetic":
        return _parse_synthetic(name)
    for path in (Path(name), *(folder / f"{name}.json" for folder in trace_folders())):
        if path.is_file():
            try:
                return from_json(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TraceError) as error:
                raise TraceError(f"trace {path}: {error}") from error
    known = ", ".join(list_traces()) or "none"
    raise TraceError(f"trace {name}: no such file; recorded ones are {known}; or synthetic:0.86/0.06/0.03/0.02")


def _parse_synthetic(name: str) -> AcceptanceTrace:
    body, _, persistence = name.partition("@")
    shares = body.partition(":")[2]
    try:
        agreement = [float(share) for share in shares.split("/")] if shares else HONEST_AGREEMENT
        return synthetic_trace(agreement, persistence=float(persistence or 0))
    except ValueError as error:
        raise TraceError(f"trace {name}: {error}; wanted: synthetic:0.86/0.06/0.03/0.02@0.5") from error


def from_json(fields: dict[str, Any]) -> AcceptanceTrace:
    """A trace from the fields of its file: claims as hundredths of a nat, one string of ranks with `.` for none."""
    try:
        version = int(fields["schema_version"])
        if version > SCHEMA_VERSION:
            raise TraceError(f"schema {version} is newer than {SCHEMA_VERSION}, the newest one known here")
        width = int(fields["width"])
        claims = [-int(value) / 100 for value in fields["claims"]]
        return AcceptanceTrace(
            name=str(fields["name"]),
            assumption=str(fields["source"]),
            log_probs=tuple(tuple(claims[start : start + width]) for start in range(0, len(claims), width)),
            ranks=tuple(NOT_AMONG if rank == "." else int(rank) for rank in fields["ranks"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"field {error} is missing or malformed") from error


def write_trace(path: Path, trace: AcceptanceTrace) -> None:
    """Writes a trace whose positions all have as many claims, at most ten."""
    width = len(trace.log_probs[0])
    fields = {
        "schema_version": SCHEMA_VERSION,
        "name": trace.name,
        "source": trace.assumption,
        "width": width,
        "ranks": "".join("." if rank == NOT_AMONG else str(rank) for rank in trace.ranks),
        "claims": [min(2000, round(-100 * claim)) for claims in trace.log_probs for claim in claims],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields, separators=(",", ":")) + "\n", encoding="utf-8")
