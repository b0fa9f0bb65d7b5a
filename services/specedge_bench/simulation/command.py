"""`specedge bench simulate`: throughput and latency on machines that are not at hand, from the product's own code."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from specedge.drafting.growth import GrowthSettings
from specedge_bench.curves import load_curve
from specedge_bench.simulation.acceptance_trace import load_trace
from specedge_bench.simulation.grid import Point, append_row, combinations, markdown_table, run_points
from specedge_bench.simulation.models import ConstantCurve, Curve
from specedge_bench.simulation.scenario import BATCH_TYPES, MODES, SYSTEMS, Scenario, ScenarioError

_DESCRIPTION = """Runs the real scheduler, drafter and acceptance code in virtual time. How long a forward takes comes
from step-time curves, what drafts agree with from a trace. Most flags take several values, separated by commas: every
combination is simulated and becomes a row of the table. The same seed gives the same numbers."""


def main(arguments: list[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 0 done, 130 interrupted; what was simulated by then is in the table and the file.

    Raises:
        SpecEdgeError: a value is wrong, or a curve or trace unknown.
    """
    options = _parser().parse_args(arguments)
    if options.record is not None:
        from specedge_bench.simulation.record import record_traces

        for path in record_traces(options.record):
            print(path)
        return 0
    points = [(setting, scenario_of(setting, options)) for setting in combinations(_axes(options))]
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("", encoding="utf-8")
    done: list[Point] = []
    code = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        runs, answers = progress.add_task("simulations", total=len(points)), progress.add_task("answers")

        def keep(point: Point) -> None:
            done.append(point)
            if options.out is not None:
                append_row(options.out, point)
            progress.advance(runs)

        try:
            run_points(points, keep, lambda num_done, total: progress.update(answers, completed=num_done, total=total))
        except KeyboardInterrupt:
            code = 130
    if done:
        print(markdown_table(done))
        for trace in sorted({str(point.setting["trace"]) for point in done}):
            print(f"\nAcceptance {trace}: {load_trace(trace).assumption}.")
    return code


def scenario_of(setting: Mapping[str, Any], options: argparse.Namespace) -> Scenario:
    """The scenario of one combination of the grid's values; raises SpecEdgeError for what makes no sense."""
    draft_curve = setting["draft-curve"]
    if setting["system"] == "server-only":
        draft_curve = options.server_draft_curve or _on_device_of(setting["verifier-curve"], draft_curve)
    edges = setting["edges"] or -(-setting["sessions"] // options.users_per_edge)
    return Scenario(
        system=setting["system"],
        verifier_curve=_curve(setting["verifier-curve"]),
        draft_curve=_curve(draft_curve),
        trace=load_trace(setting["trace"]),
        num_sessions=setting["sessions"],
        requests_per_user=options.requests_per_user,
        arrival_rate=setting["rate"],
        num_edges=edges,
        num_verifiers=options.verifiers,
        rtt_s=setting["rtt-ms"] / 1e3,
        jitter_s=options.jitter_ms / 1e3,
        mode=setting["mode"],
        growth=GrowthSettings(options.max_n_beams, options.max_beam_len, options.max_branch_width, options.max_budget),
        batch_type=setting["batch-type"],
        num_prompt_tokens=options.prompt_tokens,
        max_tokens=options.max_tokens,
        max_batch_size=options.max_batch_size,
        max_tree_nodes=options.max_tree_nodes,
        num_kv_blocks=options.num_kv_blocks,
        verifier_host_s=options.verifier_host_ms / 1e3,
        edge_host_s=options.edge_host_ms / 1e3,
        seed=setting["seed"],
    )


def _axes(options: argparse.Namespace) -> dict[str, Sequence[object]]:
    names = ["system", "mode", "batch_type", "sessions", "edges", "rate", "rtt_ms", "trace"]
    names += ["verifier_curve", "draft_curve", "seed"]
    axes: dict[str, Sequence[object]] = {name.replace("_", "-"): getattr(options, name) for name in names}
    return axes


def _curve(name: str) -> Curve:
    """`30ms` is a constant curve; anything else names a profile or a roofline."""
    if name.endswith("ms"):
        try:
            step_s = float(name[:-2]) / 1e3
        except ValueError:
            return load_curve(name)
        if not 0 < step_s < 3600:
            raise ScenarioError(f"curve {name}: a step has to take more than 0 and less than 3600 s")
        return ConstantCurve(step_s)
    return load_curve(name)


def _on_device_of(verifier_curve: str, draft_curve: str) -> str:
    """The edge's draft model on the verifier's device, where both are rooflines; else the curve as it is."""
    (device, slash, _), (_, draft_slash, model) = verifier_curve.partition("/"), draft_curve.partition("/")
    return f"{device}/{model}" if slash and draft_slash else draft_curve


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="specedge bench simulate", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--system", type=partial(_words, SYSTEMS), default=list(SYSTEMS), metavar="LIST", help=", ".join(SYSTEMS))
    add("--mode", type=partial(_words, MODES), default=["streamed"], metavar="LIST", help=", ".join(MODES))
    add(
        "--batch-type",
        type=partial(_words, BATCH_TYPES),
        default=["ready"],
        metavar="LIST",
        help=", ".join(BATCH_TYPES),
    )
    add(
        "--sessions", type=_counts, default=[8], metavar="LIST", help="users, or with --rate answers in all (default 8)"
    )
    add("--edges", type=_counts, default=[None], metavar="LIST", help="edge agents (default: as --users-per-edge asks)")
    add("--users-per-edge", type=_count, default=8, metavar="N", help="users of one edge agent (default 8)")
    add("--verifiers", type=_count, default=1, metavar="N", help="verifiers, each with its share of the edges")
    add(
        "--rate", type=_numbers, default=[None], metavar="LIST", help="answers begun per second; without, a closed loop"
    )
    add(
        "--requests-per-user",
        type=_count,
        default=2,
        metavar="N",
        help="answers of a user in a closed loop (default 2)",
    )
    add("--rtt-ms", type=_numbers, default=[15.0], metavar="LIST", help="between edge and verifier (default 15)")
    add("--jitter-ms", type=float, default=0.0, metavar="MS", help="the most that chance adds to one way")
    add(
        "--verifier-curve",
        type=_names,
        default=["A100-40/Qwen3-14B"],
        metavar="LIST",
        help="profile, DEVICE/MODEL for a roofline, or a constant as in 30ms (default A100-40/Qwen3-14B)",
    )
    add("--draft-curve", type=_names, default=["RTX 4090/Qwen3-1.7B"], metavar="LIST", help="the same, on an edge")
    add("--server-draft-curve", metavar="NAME", help="the draft on the verifier's device, for server-only")
    add(
        "--trace",
        type=_names,
        default=["synthetic"],
        metavar="LIST",
        help="recorded trace, or synthetic[:SHARES][@RUNS]",
    )
    add("--prompt-tokens", type=_count, default=256, metavar="N", help="mean length of a prompt (default 256)")
    add("--max-tokens", type=_count, default=128, metavar="N", help="mean length of an answer (default 128)")
    add("--max-batch-size", type=_count, default=64, metavar="N", help="most sessions in a step (default 64)")
    add("--max-tree-nodes", type=_count, default=64, metavar="N", help="most draft nodes of a session in a step")
    add("--num-kv-blocks", type=_count, default=None, metavar="N", help="of 16 tokens (default: enough for all)")
    add("--max-n-beams", type=_count, default=32, metavar="N", help="as for the edge (default 32)")
    add("--max-beam-len", type=_count, default=8, metavar="N", help="as for the edge (default 8)")
    add("--max-branch-width", type=_count, default=4, metavar="N", help="as for the edge (default 4)")
    add("--max-budget", type=_count, default=64, metavar="N", help="as for the edge (default 64)")
    add("--verifier-host-ms", type=float, default=1.0, metavar="MS", help="of a step beside its forward (default 1)")
    add(
        "--edge-host-ms", type=float, default=0.5, metavar="MS", help="of a draft step beside its forward (default 0.5)"
    )
    add("--seed", type=_seeds, default=[0], metavar="LIST", help="names the run (default 0)")
    add("--out", type=Path, metavar="FILE", help="JSON lines, one for each simulation")
    add("--record", type=Path, metavar="FOLDER", help="record traces of the embedded pair into a folder instead")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty entry")
    return names


def _words(known: Sequence[str], text: str) -> list[str]:
    for name in _names(text):
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not known; known are {', '.join(known)}")
    return _names(text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(name) for name in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(name) for name in _names(text)]


def _seeds(text: str) -> list[int]:
    if not all(name.isdecimal() for name in _names(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers")
    return [int(name) for name in _names(text)]
