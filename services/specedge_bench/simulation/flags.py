"""The command line of `specedge bench simulate`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from specedge_bench.network.profiles import PROFILES
from specedge_bench.simulation.scenario import BATCH_TYPES, CHOICES, MODES, SYSTEMS

_DESCRIPTION = """Runs the real scheduler, drafter and acceptance code in virtual time. How long a forward takes comes
from step-time curves, what drafts agree with from a trace. Most flags take several values, separated by commas: every
combination is simulated and becomes a row of the table. The same seed gives the same numbers, on any number of
processes."""

DEVICE_MEMORY, UNLIMITED = "device", "unlimited"
"""Words for --num-kv-blocks."""


def simulate_parser() -> argparse.ArgumentParser:
    """The parser; networks, curves and traces are left as names."""
    parser = argparse.ArgumentParser(prog="specedge bench simulate", description=_DESCRIPTION, allow_abbrev=False)
    _add_systems(parser.add_argument_group("systems and load"))
    _add_machines(parser.add_argument_group("machines and networks"))
    _add_settings(parser.add_argument_group("settings of verifier and edge"))
    _add_output(parser.add_argument_group("running and reporting"))
    return parser


def _add_systems(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--system", type=_words(SYSTEMS), default=list(SYSTEMS), metavar="LIST", help=", ".join(SYSTEMS))
    add("--mode", type=_words(MODES), default=["streamed"], metavar="LIST", help=f"of specedge: {', '.join(MODES)}")
    add(
        "--batch-type",
        type=_words(BATCH_TYPES),
        default=["ready"],
        metavar="LIST",
        help=f"of specedge: {', '.join(BATCH_TYPES)}",
    )
    add(
        "--sessions", type=_counts, default=[8], metavar="LIST", help="users, or with --rate answers in all (default 8)"
    )
    add("--edges", type=_counts, default=[None], metavar="LIST", help="edge agents (default: as --users-per-edge asks)")
    add("--users-per-edge", type=_count, default=8, metavar="N", help="users of one edge agent (default 8)")
    add("--verifiers", type=_counts, default=[1], metavar="LIST", help="each with a device of its own (default 1)")
    add(
        "--verifier-choice",
        choices=CHOICES,
        default="fixed",
        help="of an edge, for each session: fixed, edges are spread over the verifiers evenly; two, as edge agents "
        "choose, the less loaded of two by their hints; random (default fixed)",
    )
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
    add("--prompt-tokens", type=_count, default=256, metavar="N", help="mean length of a prompt (default 256)")
    add("--max-tokens", type=_count, default=128, metavar="N", help="mean length of an answer (default 128)")
    add(
        "--trace",
        type=_names,
        default=["synthetic"],
        metavar="LIST",
        help="recorded trace, or synthetic[:SHARES][@RUNS], see --list (default synthetic)",
    )


def _add_machines(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--network",
        type=_names,
        default=[],
        metavar="LIST",
        help=f"between edge and verifier: {', '.join(PROFILES)} or rttMS (default rtt15)",
    )
    add("--rtt-ms", type=_numbers, default=[], metavar="LIST", help="plain round trips, as --network rttMS")
    add(
        "--verifier-curve",
        type=_names,
        default=["A100-40/Qwen3-14B"],
        metavar="LIST",
        help="profile or its file, DEVICE/MODEL for a roofline, or a constant as in 30ms; see --list (default "
        "A100-40/Qwen3-14B)",
    )
    add(
        "--draft-curve",
        type=_names,
        default=["RTX 4090/Qwen3-1.7B"],
        metavar="LIST",
        help="the same, on an edge (default RTX 4090/Qwen3-1.7B)",
    )
    add("--server-draft-curve", metavar="NAME", help="the draft on the verifier's device, for server-only")
    add("--verifier-gpu", metavar="NAME", help="whose price is paid (default: the curve's device)")
    add("--edge-gpu", metavar="NAME", help="whose price is paid (default: the curve's device)")
    add("--price", action="append", default=[], metavar="NAME=DOLLARS_PER_S", help="of a GPU; may be repeated")
    add("--verifier-host-ms", type=float, default=1.0, metavar="MS", help="of a step beside its forward (default 1)")
    add(
        "--verifier-session-us",
        type=float,
        default=0.0,
        metavar="US",
        help="of the verifier's processor, per session and step: a step takes at least that of all its sessions "
        "(default 0; python -m benchmarks.host_limit measures it)",
    )
    add(
        "--edge-host-ms", type=float, default=0.5, metavar="MS", help="of a draft step beside its forward (default 0.5)"
    )


def _add_settings(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--max-batch-size", type=_count, default=64, metavar="N", help="most sessions in a step (default 64)")
    add("--max-num-batched-tokens", type=_count, default=1024, metavar="N", help="most tokens in a step (default 1024)")
    add(
        "--max-waiting",
        type=_count,
        metavar="N",
        help="sessions that wait for a place before a verifier refuses the next, bounded as it is by default in tokens "
        "and predicted TTFT, too; users of a closed loop come back when told to (default: nobody is refused)",
    )
    add("--max-tree-nodes", type=_count, default=64, metavar="N", help="most draft nodes of a session in a step")
    add(
        "--num-kv-blocks",
        type=_kv_blocks,
        default=DEVICE_MEMORY,
        metavar="N",
        help=f"of 16 tokens; {DEVICE_MEMORY}: what the verifier's device has room for beside the weights of its "
        f"models, where its size is known; {UNLIMITED}: enough for all (default {DEVICE_MEMORY})",
    )
    add("--max-n-beams", type=_count, default=32, metavar="N", help="as for the edge (default 32)")
    add("--max-beam-len", type=_count, default=8, metavar="N", help="as for the edge (default 8)")
    add("--max-branch-width", type=_count, default=4, metavar="N", help="as for the edge (default 4)")
    add("--max-budget", type=_count, default=64, metavar="N", help="as for the edge (default 64)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--seed", type=_seeds, default=[0], metavar="LIST", help="names the run (default 0)")
    add(
        "--repetitions",
        type=_count,
        default=1,
        metavar="N",
        help="of every combination, with seeds that follow each other: a row has their mean and spread (default 1)",
    )
    add("--processes", type=_count, default=None, metavar="N", help="at once (default: one for each core)")
    add("--out", type=Path, metavar="FILE", help="JSON lines, one for each combination")
    add("--report", type=Path, metavar="DIR", help="a run's folder with tables and plots; must hold no run")
    add("--list", action="store_true", help="print known curves, devices, networks and traces")
    add("--record", type=Path, metavar="FOLDER", help="record traces of the embedded pair into a folder instead")


def _kv_blocks(text: str) -> int | str:
    return text if text in (DEVICE_MEMORY, UNLIMITED) else _count(text)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty entry")
    return names


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        for name in _names(text):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not known; known are {', '.join(known)}")
        return _names(text)

    return words


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
