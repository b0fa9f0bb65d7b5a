"""The command line of `specedge bench` as argparse reads it; `options.py` gives the values their meaning."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from specedge_bench.arrivals import KNOWN_LOADS
from specedge_bench.network.profiles import PROFILES
from specedge_bench.systems import BATCH_TYPES, MODES

DIRECT: Final = "direct"
"""The network that is there, with nothing put in between."""

_DESCRIPTION = """Measures systems x networks x loads in one run, in turns, and writes a report. Every system is driven
through the HTTP API of edge agents with the same prompts, seeds and arrivals; the run fails if their answers differ.
Further commands: report DIR, compare DIR DIR, shapes, sweep, simulate; each has its own --help."""


def bench_parser() -> argparse.ArgumentParser:
    """The parser; lists are left as text."""
    parser = argparse.ArgumentParser(prog="specedge bench", description=_DESCRIPTION, allow_abbrev=False)
    _add_cells(parser.add_argument_group("what is measured"))
    _add_requests(parser.add_argument_group("requests"))
    _add_services(parser.add_argument_group("services"))
    _add_report(parser.add_argument_group("report"))
    return parser


def _add_cells(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--systems",
        default="autoregressive,server-only,specedge",
        metavar="LIST",
        help=f"autoregressive, server-only, specedge[:MODE[:BATCH_TYPE]]; modes {', '.join(MODES)}; batch types "
        f"{', '.join(BATCH_TYPES)} (default %(default)s)",
    )
    group.add_argument(
        "--loads", default="closed-1,closed-8", metavar="LIST", help=f"{KNOWN_LOADS} (default %(default)s)"
    )
    group.add_argument(
        "--networks",
        default="lan,far",
        metavar="LIST",
        help=f"between edge and verifier: {', '.join(PROFILES)}, rttMS, or {DIRECT} (default %(default)s)",
    )
    group.add_argument(
        "--network-method",
        choices=("proxy", "namespaces"),
        default="proxy",
        help="proxy delays TCP bytes and needs no rights; namespaces shapes packets (default %(default)s)",
    )
    group.add_argument(
        "--edges", type=_positive, default=1, metavar="N", help="edge agents; users are spread over them"
    )
    group.add_argument("--repetitions", type=_positive, default=3, metavar="N", help="of every cell (default 3)")
    group.add_argument(
        "--warm-up-tokens", type=_positive, default=32, metavar="N", help="per warm-up answer (default 32)"
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dataset", default="own", metavar="NAME", help="name of the prompt set (default own)")
    group.add_argument("--dataset-path", metavar="FILE", help="its local file")
    group.add_argument("--dataset-id", metavar="ID", help="its Hugging Face id, owner/name[:file]")
    group.add_argument("--req-offset", type=int, default=0, metavar="N", help="prompts skipped at the set's beginning")
    group.add_argument("--sample-req-cnt", type=int, metavar="N", help="take one prompt out of N (default all)")
    group.add_argument("--max-request-num", type=int, metavar="N", help="most prompts taken (default all)")
    group.add_argument(
        "--num-requests",
        type=_positive,
        metavar="N",
        help="requests of a cell and repetition, a closed loop rounds up to equal shares (default one for each prompt)",
    )
    group.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="of an answer (default 128)")
    group.add_argument("--temperature", type=number_from(0, 2), default=0.0, metavar="T", help="(default 0)")
    group.add_argument(
        "--seed", type=_natural, default=1, metavar="N", help="of prompts' order, sampling, arrivals (default 1)"
    )
    group.add_argument("--ignore-eos", action="store_true", help="answers go on to max-new-tokens (default: they end)")
    group.add_argument(
        "--reasoning", choices=("on", "off"), help="enable_thinking of the chat template (default: unset)"
    )
    group.add_argument(
        "--cache-prefill",
        choices=("on", "off"),
        default="off",
        help="on: each prompt of a cell is put into the prefix cache before the cell begins; off: no system is sent a "
        "prompt twice as it is (default off)",
    )
    group.add_argument(
        "--request-timeout",
        type=positive_number,
        default=120.0,
        metavar="S",
        help="a slower request has failed (default 120)",
    )


def _add_services(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target-model", default="demo", metavar="MODEL", help="as for `specedge verifier`")
    group.add_argument("--draft-model", default="demo", metavar="MODEL", help="as for `specedge edge`")
    for flag in ("device", "dtype", "num-threads"):
        group.add_argument(f"--{flag}", metavar="VALUE", help="as for `specedge verifier` and `specedge edge`")
    for process in ("verifier", "edge"):
        group.add_argument(
            f"--{process}-arg",
            action="append",
            default=[],
            metavar="FLAG",
            help=f"one more flag for each {process}, as --{process}-arg=--max-batch-size=16; may be repeated",
        )
    group.add_argument("--verifier", metavar="HOST:PORT", help="use the verifier that runs there")
    group.add_argument("--verifier-metrics", metavar="URL", help="its /metrics; without it, its own counts are missing")
    group.add_argument(
        "--pace",
        metavar="TARGET,DRAFT",
        help="stretch forwards to these curves, so that services, network and policy are those beside a GPU: 30ms, "
        "30ms+0.1ms (the second for every row), or as for simulate",
    )
    group.add_argument(
        "--modelled-pair",
        action="store_true",
        help="with --pace: tokens by arithmetic, drafts that agree with a known probability",
    )
    group.add_argument(
        "--ready-timeout",
        type=positive_number,
        default=600.0,
        metavar="S",
        help="seconds to load a system (default 600)",
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's folder; must hold no run")
    group.add_argument("--slo-ttft-ms", type=positive_number, default=1000.0, metavar="MS", help="(default 1000)")
    group.add_argument(
        "--slo-itl-ms", type=positive_number, default=100.0, metavar="MS", help="mean per answer (default 100)"
    )
    group.add_argument(
        "--verifier-gpu", default="A100-40", metavar="NAME", help="whose price is paid (default A100-40)"
    )
    group.add_argument("--edge-gpu", default="RTX 4090", metavar="NAME", help="whose price is paid (default RTX 4090)")
    group.add_argument(
        "--price", action="append", default=[], metavar="NAME=DOLLARS_PER_S", help="of a GPU; may be repeated"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def number_from(low: float, high: float) -> Callable[[str], float]:
    """A reader of an argument within these bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return read


def positive_number(text: str) -> float:
    """An argument's value; raises ArgumentTypeError where it is none, or too large to be meant."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0 and at most 86400000")
    return value
