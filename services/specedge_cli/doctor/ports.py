"""The process's own ports: allowed, and free, or taken by the very process."""

import errno
import socket
import ssl
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final, Literal

from specedge.tls.rules import UNIX
from specedge_cli.doctor.check import Finding
from specedge_cli.doctor.facts import Facts
from specedge_cli.probe import probe

_TIMEOUT_S: Final = 1.0
Kind = Literal["grpc", "http", "metrics"]


@dataclass(frozen=True, slots=True)
class PortUse:
    """A port that a process listens on.

    Args:
        setting: its name.
        host, port: where; port 0 takes any.
        kind: what is spoken there.
        is_tls: by TLS.
    """

    setting: str
    host: str
    port: int
    kind: Kind
    is_tls: bool = False


def check_ports(uses: Sequence[PortUse], facts: Facts) -> Sequence[Finding]:
    """Each port of a process, the one that it serves at first."""
    findings = [_check(use) for use in uses]
    facts.runs_already = findings[0].values.get("is_own", False) is True
    seen: dict[tuple[str, int], str] = {}
    for use in uses:
        place = (use.host, use.port)
        if use.port and place in seen:
            found = f"{seen[place]} and {use.setting} are both {use.port} on {use.host}"
            findings.append(Finding("ports differ", "fail", found, f"choose another {use.setting}"))
        seen.setdefault(place, use.setting)
    return findings


def _check(use: PortUse) -> Finding:
    if use.host.startswith(UNIX):
        return Finding(use.setting, "ok", f"{use.host} needs no port")
    if use.port == 0:
        return Finding(use.setting, "ok", "0: takes a free one and logs it")
    reason = refusal_of(use.host, use.port)
    if reason is None:
        return judge_port(use, None, is_own=False)
    return judge_port(use, reason, is_own=reason == errno.EADDRINUSE and _is_own(use))


def refusal_of(host: str, port: int) -> int | None:
    """The system's reason (errno) not to let us listen there; None where it would."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except OSError as error:
            return error.errno or errno.EINVAL
    return None


def judge_port(use: PortUse, reason: int | None, *, is_own: bool) -> Finding:
    """What a refusal means.

    Args:
        reason: errno, or None.
        is_own: a SpecEdge process of this kind listens there.
    """
    where = f"{use.host}:{use.port}"
    values = {"port": use.port, "is_free": reason is None, "is_own": is_own}
    if reason is None:
        return Finding(use.setting, "ok", f"{where} is free", values=values)
    if is_own:
        found = f"{where} is taken by a SpecEdge process that runs already"
        return Finding(use.setting, "warn", found, "nothing, if that is the one these settings are for", values)
    if reason == errno.EADDRINUSE:
        change = f"stop what listens there, or choose another {use.setting}"
        return Finding(use.setting, "fail", f"{where} is taken by something else", change, values)
    if reason == errno.EACCES:
        change = f"choose a {use.setting} from 1024 on, or give the process CAP_NET_BIND_SERVICE"
        return Finding(use.setting, "fail", f"{where} is not allowed to this user", change, values)
    if reason in (errno.EADDRNOTAVAIL, socket.EAI_NONAME):
        return Finding(use.setting, "fail", f"{use.host} is no address of this machine", "set host to 0.0.0.0", values)
    found = f"{where} cannot be had: {errno.errorcode.get(reason, reason)}"
    return Finding(use.setting, "fail", found, "correct host and port", values)


def _is_own(use: PortUse) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(use.host, use.host)
    spelled = f"[{host}]" if ":" in host else host
    if use.kind == "grpc":
        reason = probe(f"{spelled}:{use.port}", _TIMEOUT_S)
        # A verifier with TLS hangs up on plain text; that it does speak TLS is all that can be seen from here.
        return reason is None or reason.startswith("not ready") or (use.is_tls and "speaks TLS" in reason)
    scheme = "https" if use.is_tls else "http"
    path, word = ("metrics", b"specedge_") if use.kind == "metrics" else ("version", b"protocol_version")
    return _shows(f"{scheme}://{spelled}:{use.port}/{path}", word)


def _shows(url: str, word: bytes) -> bool:
    """Whether a page has this word; who signed its certificate does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=_TIMEOUT_S) as answer:
            return word in answer.read(2**16)
    except (OSError, ValueError, HTTPException):
        return False
