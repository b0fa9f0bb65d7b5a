"""The processes of one system: a verifier, and edge agents that users talk to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from specedge.errors import SpecEdgeError, VerifierUnavailable
from specedge_bench.network.profiles import NetworkProfile
from specedge_bench.options import Options
from specedge_bench.pace.pace import Pace
from specedge_bench.systems import SystemVariant
from specedge_bench.ways import HOST, Way, proxied, separated
from specedge_cli.doctor.credentials import client_tls
from specedge_cli.ports import free_port
from specedge_cli.probe import probe
from specedge_cli.processes import load_edge_settings
from specedge_cli.supervisor import Child, Interrupts, specedge_command

_POLL_S = 0.2
_PROBE_TIMEOUT_S = 1.0
_STOP_TIMEOUT_S = 10.0
_TAIL_LINES = 12


class SystemFailed(SpecEdgeError):
    """A process of a system ended, or was not ready in time; holds its last lines."""


class Interrupted(Exception):
    """The user wants no more."""


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """What runs, and where it is found.

    Args:
        variant: which system it is.
        way: between its edges and its verifier.
        edge_urls: of the HTTP APIs.
        verifier_metrics_url: None for a verifier that was there before and whose metrics were not named.
        step_log: the verifier's; None for a verifier that was there before.
        children: the processes, the verifier's first.
    """

    variant: SystemVariant
    way: Way
    edge_urls: tuple[str, ...]
    verifier_metrics_url: str | None
    step_log: Path | None
    children: tuple[Child, ...]

    def failure(self) -> str | None:
        """Which process has ended, and its last lines; None while all run."""
        for child in self.children:
            code = child.exit_code()
            if code is not None:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"the {child.name} {how}{_tail(child)}"
        return None


@contextlib.asynccontextmanager
async def deployed(
    variant: SystemVariant, options: Options, step_log: Path, interrupts: Interrupts
) -> AsyncIterator[RunningSystem]:
    """Starts a system and waits until it is ready; everything is stopped at the end.

    Raises:
        SystemFailed: a process ended or was not ready in time.
        Interrupted: the user wants no more.
        SpecEdgeError: the network cannot be made.
    """
    ports = (free_port(HOST), free_port(HOST))
    edge_ports = [free_port(HOST) for _ in range(options.num_edges)]
    async with _way(options, options.networks[0], ports, edge_ports) as way:
        children: list[Child] = []
        ready: list[tuple[Child, str]] = []
        try:
            if options.verifier is None:
                arguments = _verifier_arguments(variant, options, way, ports, step_log)
                verifier = Child(
                    f"verifier of {variant.name}", [*way.prefix("verifier"), *_command(options.pace, arguments)]
                )
                children.append(verifier)
                ready.append((verifier, way.reach("verifier", ports[0])))
            urls = []
            for number, port in enumerate(edge_ports):
                arguments = _edge_arguments(variant, options, way, number, port)
                edge = Child(
                    f"edge {number} of {variant.name}", [*way.prefix("edge"), *_command(options.pace, arguments)]
                )
                children.append(edge)
                urls.append(f"http://{way.reach('edge', port)}")
                ready.append((edge, urls[-1]))
            await _wait_until_ready(ready, options.ready_timeout_s, interrupts)
            is_ours = options.verifier is None
            metrics_url = f"http://{way.reach('verifier', ports[1])}/metrics" if is_ours else options.verifier_metrics
            yield RunningSystem(variant, way, tuple(urls), metrics_url, step_log if is_ours else None, tuple(children))
        finally:
            for child in reversed(children):
                await asyncio.to_thread(child.stop, _STOP_TIMEOUT_S, interrupts)


def require_verifier(address: str, edge_flags: Sequence[str]) -> None:
    """Asks the verifier at an address as edges with these flags will: by TLS, where they have certificates.

    Raises:
        VerifierUnavailable: none is ready there.
        SettingsError: a flag is wrong, or a file that it names cannot be used.
    """
    edge = load_edge_settings(["--verifier-address", address, *edge_flags])
    reason = probe(address, 5.0, client_tls(edge))
    if reason is not None:
        raise VerifierUnavailable(
            f"no verifier at {address}: {reason}; start one with `specedge verifier`, or leave --verifier out"
        )


def _way(
    options: Options, profile: NetworkProfile | None, ports: tuple[int, int], edge_ports: Sequence[int]
) -> contextlib.AbstractAsyncContextManager[Way]:
    if options.network_method == "namespaces" and profile is not None:
        return separated(profile, ports, edge_ports, options.seed)
    return proxied(options.verifier or f"{HOST}:{ports[0]}", profile, options.num_edges, options.seed)


def _verifier_arguments(
    variant: SystemVariant, options: Options, way: Way, ports: tuple[int, int], step_log: Path
) -> list[str]:
    where = ["--host", way.listen_host, "--port", str(ports[0]), "--allow-plaintext", "true"]
    metrics = ["--metrics-host", way.listen_host, "--metrics-port", str(ports[1]), "--step-log", str(step_log)]
    own = variant.verifier_arguments(options.draft_model)
    return ["verifier", *where, *metrics, *own, *options.shared_flags, *options.verifier_flags]


def _edge_arguments(variant: SystemVariant, options: Options, way: Way, number: int, port: int) -> list[str]:
    where = ["--host", way.listen_host, "--port", str(port), "--verifier-address", way.verifier_address(number)]
    where += ["--allow-plaintext", "true", "--allow-plaintext-http", "true"]
    where += ["--metrics-port", "off", "--public-metrics", "true"]
    return ["edge", *where, *variant.edge_arguments(options.draft_model), *options.shared_flags, *options.edge_flags]


def _command(pace: Pace | None, arguments: Sequence[str]) -> list[str]:
    return specedge_command(arguments) if pace is None else pace.command(arguments)


async def _wait_until_ready(children: Sequence[tuple[Child, str]], timeout_s: float, interrupts: Interrupts) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + timeout_s
    for child, address in children:
        while await asyncio.to_thread(probe, address, _PROBE_TIMEOUT_S) is not None:
            if interrupts.count:
                raise Interrupted
            for other, _ in children:
                if other.exit_code() is not None:
                    raise SystemFailed(f"the {other.name} ended with exit code {other.exit_code()}{_tail(other)}")
            if loop.time() > give_up_at:
                raise SystemFailed(f"the {child.name} was not ready within {timeout_s:g} s{_tail(child)}")
            await asyncio.sleep(_POLL_S)


def _tail(child: Child) -> str:
    lines = child.last_lines(_TAIL_LINES)
    return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
