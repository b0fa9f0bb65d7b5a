"""`specedge bench sweep`: tries drafting modes and growth parameters, one after the other, and recommends settings.

Parameters are searched one at a time, each with the best value of those before it: a run of all its candidates in
turns, so that they share the machine's moods. A candidate replaces the present settings only when it is clearly better
(see `choose`), because the best of several equal ones always looks better by chance.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.settings import EdgeSettings
from specedge.errors import SettingsError, SpecEdgeError
from specedge_bench.flags import number_from
from specedge_bench.options import parse_options
from specedge_bench.run import INTERRUPTED, run
from specedge_bench.run_folder import Run, RunFolder
from specedge_bench.statistics import geometric_ratio
from specedge_bench.summary import per_repetition
from specedge_bench.systems import MODES

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mode", MODES),
    ("max_budget", ("16", "32", "64")),
    ("max_beam_len", ("4", "8", "12")),
    ("max_branch_width", ("2", "4", "8")),
    ("max_n_beams", ("8", "32")),
)
"""What is tried, in this order; those named first matter most."""


class NothingWorks(SpecEdgeError):
    """Every candidate of a stage had failed requests; names them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of an edge: the mode, and the growth parameters that differ from the edge's own defaults."""

    mode: str = "streamed"
    growth: tuple[tuple[str, str], ...] = ()

    @property
    def system(self) -> str:
        """Its name in a run."""
        growth = "+".join(f"{name}={value}" for name, value in self.growth)
        return f"specedge:{self.mode}:ready" + (f":{growth}" if growth else "")

    def changed(self, name: str, value: str) -> "Candidate":
        """The same with one parameter changed."""
        if name == "mode":
            return replace(self, mode=value)
        kept = tuple(pair for pair in self.growth if pair[0] != name)
        is_default = value == str(EdgeSettings.model_fields[name].default)
        return replace(self, growth=kept if is_default else (*kept, (name, value)))

    def settings(self) -> str:
        """As the `edge` section of a settings file."""
        lines = [
            "edge:",
            *(f"  {name}: {value}" for name, value in self.growth),
            "  proactive:",
            f"    type: {self.mode}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Score:
    """What a system reached in a run.

    Attributes:
        rates: tokens/s of each network, load and repetition; in the same order for every system of the run.
        is_complete: no request failed.
    """

    system: str
    rates: tuple[float, ...]
    is_complete: bool

    @property
    def tokens_per_s(self) -> float:
        """Geometric mean."""
        return math.exp(math.fsum(math.log(rate) for rate in self.rates) / len(self.rates)) if all(self.rates) else 0.0


def scores(run: Run) -> dict[str, Score]:
    """The scores of all systems that have a complete repetition, by name."""
    figures = per_repetition(run)
    rates: dict[str, list[float]] = {}
    for cell in sorted(run.cells, key=lambda cell: (cell.network, cell.load, cell.repetition)):
        rates.setdefault(cell.system, []).append(figures[cell.cell, cell.repetition]["throughput"])
    failed = {request.system for request in run.requests if request.status != "ok"}
    return {system: Score(system, tuple(values), system not in failed) for system, values in rates.items()}


def choose(present: Candidate, candidates: Sequence[Candidate], found: dict[str, Score], margin: float) -> Candidate:
    """The best of the candidates, if it is clearly better than the present one.

    That is: by more than `margin` (a share) in the mean of its paired ratios, and the 95 % interval of that mean lies
    above 1. A candidate with failed requests is never chosen; a present one that has some gives way to any without.

    Raises:
        NothingWorks: every candidate had failed requests.
    """
    working = [entry for entry in candidates if entry.system in found and found[entry.system].is_complete]
    if not working:
        raise NothingWorks(f"none of {', '.join(entry.system for entry in candidates)} answered every request")
    best = max(working, key=lambda entry: found[entry.system].tokens_per_s)
    if present not in working:
        return best
    gain = geometric_ratio(found[present.system].rates, found[best.system].rates)
    return best if gain.mean > 1 + margin and gain.low > 1 else present


def main(arguments: list[str]) -> int:
    """Runs the stages and prints what it recommends.

    Returns:
        0; 1 where a stage's run failed in part; 130 after an interruption, with what the stages before it recommend.

    Raises:
        SettingsError: a flag is wrong.
        NothingWorks: no candidate of a stage answered every request.
    """
    options, bench_arguments = _parser().parse_known_args(arguments)
    if any(argument.partition("=")[0] == "--systems" for argument in bench_arguments):
        raise SettingsError("--systems: a sweep chooses the systems itself; --stages says which settings it tries")
    present, found, worst_code = Candidate(), dict[str, Score](), 0
    for number, (name, values) in enumerate(STAGES, start=1):
        if name not in options.stages:
            continue
        candidates = list(dict.fromkeys([present, *(present.changed(name, value) for value in values)]))
        folder = options.out / f"{number}-{name}"
        systems = ",".join(["autoregressive", *(candidate.system for candidate in candidates)])
        run_options = parse_options([*bench_arguments, "--systems", systems, "--out", str(folder)])
        print(f"stage {name}: {', '.join(values)}", flush=True)
        code = run(run_options)
        worst_code = max(worst_code, code)
        if code == INTERRUPTED:
            break
        found = scores(RunFolder.load(folder))
        present = choose(present, candidates, found, options.margin)
        print(f"\nstage {name}: going on with {present.system}\n", flush=True)
    if found:
        print(f"\n{recommendation(present, found)}")
    return worst_code


def recommendation(chosen: Candidate, found: dict[str, Score]) -> str:
    """What to write into the settings file, given the last stage's scores."""
    rate, plain = found[chosen.system].tokens_per_s, found.get("autoregressive")
    if plain is None or not plain.is_complete:
        return f"Recommended, at {rate:.4g} tokens/s:\n\n{chosen.settings()}"
    compared = f"{rate:.4g} tokens/s with drafting, {plain.tokens_per_s:.4g} without"
    if plain.tokens_per_s > rate:
        return f"Drafting does not pay here ({compared}). Recommended:\n\nedge:\n  draft_model: none"
    return f"Recommended ({compared}):\n\n{chosen.settings()}"


def _parser() -> argparse.ArgumentParser:
    known = ",".join(name for name, _ in STAGES)
    parser = argparse.ArgumentParser(
        prog="specedge bench sweep",
        description="Tries modes and growth parameters and recommends settings. All other flags of `specedge bench` "
        "(models, networks, loads, prompts) are taken as well, but --systems.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder; each stage writes one into it")
    parser.add_argument(
        "--stages", type=_stages, default=_stages(known), metavar="LIST", help=f"what is tried (default {known})"
    )
    parser.add_argument(
        "--margin",
        type=number_from(0, 1),
        default=0.03,
        metavar="SHARE",
        help="by how much better a change must be (default 0.03)",
    )
    return parser


def _stages(text: str) -> tuple[str, ...]:
    known = [name for name, _ in STAGES]
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is no stage; known are {', '.join(known)}")
    return names
