"""The way to the verifier: name, TCP, TLS, an answer, round trips, bandwidth."""

import socket
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import grpc
from grpc.aio import AioRpcError

from edge_agent.settings import EdgeSettings
from specedge.errors import SettingsError
from specedge.tls.diagnosis import client_context, diagnose
from specedge.tls.rules import UNIX
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.credentials import client_tls, shown_by
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.statistics import percentile
from specedge_cli.doctor.tls_files import judge_remaining
from specedge_cli.doctor.verifier_link import VerifierLink, ask_info, is_serving, measure_padded, measure_pings

_TIMEOUT_S: Final = 3.0
_NUM_PINGS: Final = 20
_FAR_S: Final = 0.1
_UNSTEADY: Final = 3.0
_PADDINGS: Final = (2**16, 2**18, 2**20)
_ENOUGH_S: Final = 0.3
_TELLING: Final = 0.2
_LITTLE_BYTES_PER_S: Final = 25_000  # ten sessions that each send 1 kB a verification, two or three times a second
_START: Final = "start the verifier, or correct verifier_address"


def check_address(settings: EdgeSettings, facts: Facts) -> Sequence[Finding]:
    """Name resolution and TCP."""
    address = settings.verifier_address
    if address.startswith(UNIX):
        facts.is_reachable = True
        return [Finding("address", "ok", f"{address} is a unix socket")]
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    started_s = time.monotonic()
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        change = "correct the name in verifier_address, or the machine's DNS"
        return [Finding("name", "fail", f"{host} cannot be resolved: {error.strerror or error}", change)]
    took_ms = 1e3 * (time.monotonic() - started_s)
    hosts = sorted({str(entry[4][0]) for entry in found})
    values = {"resolution_ms": round(took_ms, 3)}
    name = Finding("name", "ok", f"{host} is {', '.join(hosts)} ({took_ms:.1f} ms)", values=values)
    return [name, _connect(address, host, int(port), facts)]


def _connect(address: str, host: str, port: int, facts: Facts) -> Finding:
    started_s = time.monotonic()
    try:
        with socket.create_connection((host, port), _TIMEOUT_S):
            took_ms = 1e3 * (time.monotonic() - started_s)
    except TimeoutError:
        change = "let this port through the firewalls between, or correct verifier_address"
        return Finding("tcp", "fail", f"{address} does not answer within {_TIMEOUT_S:g} s", change)
    except ConnectionRefusedError:
        if facts.verifier_is_to_start:
            found = f"nothing listens at {address} yet: these settings' own verifier is not running"
            return Finding("tcp", "skipped", found, "run `specedge doctor edge` once more when it is")
        return Finding("tcp", "fail", f"nothing listens at {address}", _START)
    except OSError as error:
        return Finding("tcp", "fail", f"{address}: {error.strerror or error}", _START)
    facts.is_reachable = True
    return Finding("tcp", "ok", f"{address} takes connections ({took_ms:.1f} ms)", values={"connect_ms": took_ms})


def check_tls(settings: EdgeSettings, facts: Facts) -> Sequence[Finding]:
    """The handshake, as this edge's client would have it, and how long the verifier's certificate lasts."""
    if not facts.is_reachable:
        return [Finding("tls", "skipped", "the verifier was not reached")]
    address, tls = settings.verifier_address, client_tls(settings)
    try:
        failure = diagnose(address, tls, _TIMEOUT_S)
    except OSError as error:
        return [Finding("tls", "fail", f"the TLS files cannot be used: {error}", "see the findings on TLS files")]
    if failure is not None:
        return [Finding("tls", "fail", failure.text, _TLS_CHANGES.get(failure.reason, "see docs/tls.md"))]
    if tls is None or address.startswith(UNIX):
        return [Finding("tls", "ok", f"plain text, as both sides want it at {address}")]
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with (
        socket.create_connection((host, int(port)), _TIMEOUT_S) as plain,
        client_context(tls).wrap_socket(plain, server_hostname=tls.name or host) as secure,
    ):
        peer = secure.getpeercert() or {}
        version = secure.version()
    expires_at = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)
    whose = "the verifier's certificate"
    life = judge_remaining("verifier certificate", whose, expires_at, datetime.now(UTC))
    return [Finding("tls", "ok", f"{version}, {'mutual' if tls.certificate_file else 'the verifier is known'}"), life]


_TLS_CHANGES: Final = {
    "untrusted": "set verifier_ca_file to the authority that signed the verifier's certificate",
    "expired": "give the verifier a new certificate (it reads the file again by itself), and check this clock",
    "not_yet_valid": "set the clocks of both machines right",
    "wrong_name": "set verifier_name to a name in its certificate, or make a certificate for this address",
    "refused": "set verifier_certificate_file and verifier_key_file to what the verifier's tls_client_ca_file trusts",
    "not_tls": "unset verifier_ca_file, or give the verifier tls_certificate_file and tls_key_file",
    "needs_tls": "set verifier_ca_file: this verifier speaks TLS only",
}


def check_answer(link: VerifierLink, settings: EdgeSettings, facts: Facts) -> Sequence[Finding]:
    """Health, authentication, and what is served."""
    if not facts.is_reachable:
        return [Finding("answer", "skipped", "the verifier was not reached")]
    try:
        is_ready = link.ask(is_serving, _TIMEOUT_S)
    except (AioRpcError, TimeoutError, SettingsError) as error:
        return [Finding("answer", "fail", _spell(error, settings.verifier_address), "see the findings above")]
    if not is_ready:
        change = "wait until its model is loaded, or until another one takes over if it is shutting down"
        return [Finding("answer", "fail", "the verifier says that it is not ready", change)]
    healthy = Finding("answer", "ok", "the verifier is ready")
    try:
        facts.info = link.ask(ask_info, _TIMEOUT_S)
    except AioRpcError as error:
        return [healthy, judge_refusal(error.code(), error.details() or "", shown_by(settings))]
    shown = " and ".join(shown_by(settings)) or "nothing, and it asks for nothing"
    return [healthy, Finding("authentication", "ok", f"the verifier is shown {shown}")]


def judge_refusal(code: grpc.StatusCode, details: str, shown: Sequence[str]) -> Finding:
    """Why the verifier answers a health check and nothing else."""
    found = f"{code.name}: {details} (it was shown {' and '.join(shown) or 'nothing'})"
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        change = "ask the verifier's operator for a token or certificate that it knows, and set it here"
        return Finding("authentication", "fail", found, change)
    return Finding("authentication", "fail", found, "point verifier_address at a SpecEdge verifier")


def _spell(error: Exception, address: str) -> str:
    if isinstance(error, AioRpcError):
        return f"{address}: {error.code().name}: {error.details()}"
    return f"{address} does not answer within {_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else str(error)


def check_round_trips(link: VerifierLink, facts: Facts) -> Sequence[Finding]:
    """Twenty small calls, one after the other."""
    if facts.info is None:
        return [Finding("round trip", "skipped", "the verifier did not answer")]
    seconds = link.ask(partial(measure_pings, num_pings=_NUM_PINGS), 8.0)
    finding = judge_round_trips(seconds)
    facts.round_trip_s = percentile(seconds, 50)
    return [finding]


def judge_round_trips(seconds: Sequence[float]) -> Finding:
    """How far and how steady the way is."""
    p50, p95 = percentile(seconds, 50), percentile(seconds, 95)
    values = {"p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "num_pings": len(seconds)}
    found = f"p50 {1e3 * p50:.2f} ms, p95 {1e3 * p95:.2f} ms over {len(seconds)} pings"
    if p50 > _FAR_S:
        change = "choose a verifier that is nearer: after each wrong guess nothing is gained for this long"
        return Finding("round trip", "warn", found, change, values)
    if p95 > max(_UNSTEADY * p50, p50 + 0.01):
        change = "look for Wi-Fi or a busy line in between: bursts come as late as the slowest trips"
        return Finding("round trip", "warn", found, change, values)
    return Finding("round trip", "ok", found, values=values)


def check_bandwidth(link: VerifierLink, facts: Facts) -> Sequence[Finding]:
    """Up: calls that carry ignored bytes. Down cannot be asked for without work for the verifier."""
    if facts.info is None or facts.round_trip_s is None:
        return [Finding("bandwidth", "skipped", "the verifier did not answer")]
    calls: list[tuple[int, float]] = []
    for num_bytes in _PADDINGS:
        calls.append((num_bytes, link.ask(partial(measure_padded, num_bytes=num_bytes), 10.0)))
        if calls[-1][1] > _ENOUGH_S:
            break
    return [judge_bandwidth(calls, facts.round_trip_s)]


def judge_bandwidth(calls: Sequence[tuple[int, float]], round_trip_s: float) -> Finding:
    """The best rate of (bytes, seconds) of some calls, beyond what a small call takes; TCP begins slowly.

    A difference below a fifth of the round trip tells nothing: round trips differ by as much.
    """
    least_s = max(_TELLING * round_trip_s, 1e-4)
    rates = {num_bytes / max(seconds - round_trip_s, least_s): num_bytes for num_bytes, seconds in calls}
    bytes_per_s = max(rates)
    values = {"up_bytes_per_s": round(bytes_per_s), "measured_with_bytes": rates[bytes_per_s]}
    found = (
        f"up {8e-6 * bytes_per_s:,.1f} Mbit/s or more (a call of {rates[bytes_per_s] // 1024} KiB); down was not "
        "measured: a verifier's messages have about 100 bytes"
    )
    if bytes_per_s < _LITTLE_BYTES_PER_S:
        change = "find a faster line: drafts take up to 1 kB a verification for each session"
        return Finding("bandwidth", "warn", found, change, values)
    return Finding("bandwidth", "ok", found, values=values)
