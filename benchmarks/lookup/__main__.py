"""What drafts by lookup bring, as the tables of docs/lookup.md.

python -m benchmarks.lookup            # all tables: some minutes
python -m benchmarks.lookup --replay   # only the answers replayed: some seconds
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping

from benchmarks.lookup.replay import Replayed, replay_all, replay_structured
from benchmarks.lookup.server_only import TEMPERATURES, measure_server_only
from benchmarks.lookup.services import NETWORKS, WAYS, WORKLOADS, measure
from specedge_bench.pace.pace import Pace


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookup", allow_abbrev=False)
    parser.add_argument("--replay", action="store_true", help="only the answers replayed, without a model")
    parser.add_argument("--server-only", action="store_true", help="the answers replayed and system server-only")
    parser.add_argument("--rounds", type=int, default=3, help="times each request is made, after one to warm up")
    parser.add_argument("--pace", default="30ms,5ms", metavar="TARGET,DRAFT", help="curves of the forwards, or none")
    options = parser.parse_args(arguments)
    plain, predicted = replay_all(with_predictions=False), replay_all(with_predictions=True)
    print_replayed(
        "answers replayed", plain | {f"{kind}, with a prediction": result for kind, result in predicted.items()}
    )
    following = replay_structured(is_following=True)
    print_replayed(
        "structured answers replayed",
        replay_structured(is_following=False)
        | {f"{kind}; drafts follow the grammar": result for kind, result in following.items()},
    )
    if options.replay:
        return 0
    num_different = print_server_only(options.rounds)
    if options.server_only:
        return int(num_different > 0)
    target, _, draft = options.pace.partition(",")
    num_different += print_services(options.rounds, None if options.pace == "none" else Pace(target, draft))
    return int(num_different > 0)


def print_replayed(title: str, results: Mapping[str, Replayed]) -> None:
    """One table."""
    print(f"\n| {title} | tokens | tokens per verification | nodes per verification | nodes accepted |")
    print("|---|---:|---:|---:|---:|")
    for name, result in results.items():
        per_verification = result.num_tokens / result.num_verifications
        nodes = result.num_nodes / result.num_verifications
        accepted = f"{result.num_accepted / result.num_nodes:.0%}" if result.num_nodes else "-"
        print(f"| {name} | {result.num_tokens} | {per_verification:.2f} | {nodes:.1f} | {accepted} |")


def print_services(num_rounds: int, pace: Pace | None) -> int:
    """Measures, prints, and returns how many answers differed from plain decoding's."""
    measured = asyncio.run(measure(num_rounds, pace))
    for network in NETWORKS:
        print(f"\n| {network.name}: tokens per verification, tokens/s | {' | '.join(WAYS)} |")
        print(f"|---|{'---:|' * len(WAYS)}")
        for workload in WORKLOADS:
            cells = []
            for way in WAYS:
                total = measured.totals[network.name, workload.name, way]
                cells.append(
                    f"{total.num_tokens / total.num_verifications:.2f}, {total.num_tokens / total.seconds:.0f}"
                )
            print(f"| {workload.name} | {' | '.join(cells)} |")
    print(f"\n{measured.num_different} of {measured.num_answers} answers differ from plain decoding's")
    return measured.num_different


def print_server_only(num_rounds: int) -> int:
    """Measures, prints, and returns how many answers differed with lookup."""
    print("\n| server-only: tokens per verification, tokens/s | model | both |\n|---|---:|---:|")
    num_different = 0
    for temperature in TEMPERATURES:
        totals = [measure_server_only(lookup, temperature, num_rounds) for lookup in ("off", "on")]
        cells = [
            f"{total.num_tokens / total.num_verifications:.2f}, {total.num_tokens / total.seconds:.0f}"
            for total in totals
        ]
        print(f"| a tale, T {temperature:g} | {' | '.join(cells)} |")
        num_different += sum(text != other for text, other in zip(totals[0].texts, totals[1].texts, strict=True))
    return num_different


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
