"""The fleet's file, read and checked: which processes run on which host, with which settings.

    name: specedge                             # of the compose projects; this is the default
    images: {verifier: specedge-verifier, edge: specedge-edge}
    folder: specedge                           # on every host, below the login's home
    hosts:
      gpu-1:
        ssh: ops@gpu-1.example.com             # or local
        address: gpu-1.internal                # where edges find it; left out: the host that ssh is told
        gpus: all                              # or a number; left out: none
        models: /data/models                   # left out: a volume
        verifier: {target_model: Qwen/Qwen3-14B, host: 0.0.0.0, tls_certificate_file: certs/server.crt, ...}
      shop-1:
        ssh: ops@shop-1.example.com
        edge: {verifier: gpu-1, draft_model: Qwen/Qwen3-1.7B, verifier_ca_file: certs/ca.crt, ...}

`verifier:` and `edge:` hold settings as a settings file does. `verifier` of an edge names a host of this file,
`verifier_address` any other verifier. Settings that end in `_file` name files beside this one, which go to the host.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specedge.errors import SettingsError
from specedge.settings import ProcessSettings
from specedge.settings_sources import ProcessKind, load_yaml, settings_of
from specedge.tls.rules import is_loopback_host
from specedge_cli.processes import EDGE, VERIFIER

LOCAL: Final = "local"
MAX_HOSTS: Final = 1000
VERIFIER_PORT: Final = 50051
_LOOPBACK: Final = "127.0.0.1"  # where a process listens unless it is told otherwise
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOGIN: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.:-]*")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
_FOLDER: Final = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*")
_IMAGE: Final = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*")
_GPUS: Final = re.compile(r"all|[1-9]\d?")
_IMAGES: Final = {"verifier": "specedge-verifier", "edge": "specedge-edge"}
_HOST_KEYS: Final = ("ssh", "address", "gpus", "models", "verifier", "edge")


@dataclass(frozen=True, slots=True)
class Service:
    """A process of a host.

    Attributes:
        kind: verifier or edge.
        image: what its container is made of.
        section: its settings as the file has them.
        settings: the same, checked.
        places: by setting, the name in the host's folder of the file that it names.
        files: by that name, the file here.
    """

    kind: ProcessKind
    image: str
    section: Mapping[str, Any]
    settings: ProcessSettings
    places: Mapping[str, str]
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Host:
    """A machine and what runs on it.

    Attributes:
        name: in the file.
        project: of its containers.
        login: what ssh is told; `local` is this machine.
        folder: where its files lie there, from the login's home or from the root.
        gpus: "all" or a number, for its containers; None for none.
        models: folder or volume of the models.
        services: by name, "verifier" and "edge".
    """

    name: str
    project: str
    login: str
    folder: str
    gpus: str | None
    models: str
    services: Mapping[str, Service]


def read_fleet(path: Path) -> tuple[Host, ...]:
    """The hosts of a fleet's file, those with verifiers first.

    Raises:
        SettingsError: the file is wrong; the message names host, key and what is allowed.
    """
    if not path.is_file():
        raise SettingsError(f"{path} (fleet) does not exist")
    content = _Section(load_yaml(path, "fleet"), str(path), ("name", "images", "folder", "hosts"))
    images = dict(_IMAGES)
    given = content.section("images", tuple(_IMAGES))
    for kind in given.values:
        images[kind] = given.text(kind, _IMAGE, "the name of an image") or images[kind]
    hosts = content.section("hosts", None)
    if not 1 <= len(hosts.values) <= MAX_HOSTS:
        raise SettingsError(f"{path} has {len(hosts.values)} hosts; 1 to {MAX_HOSTS} are allowed")
    sections = {name: hosts.section(name, _HOST_KEYS) for name in hosts.values}
    for name in sections:
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"a host of {path} is called {name!r:.80}: allowed are small letters, digits and hyphens"
            )
    project = content.text("name", _NAME, "small letters, digits and hyphens") or "specedge"
    folder = (content.text("folder", _FOLDER, "a path") or "specedge").rstrip("/")
    plans = [
        _host(name, section, path, f"{project}-{name}", f"{folder}/{name}", images, sections)
        for name, section in sections.items()
    ]
    return tuple(sorted(plans, key=lambda host: "verifier" not in host.services))


@dataclass(frozen=True, slots=True)
class _Section:
    """Keys and values of the file, and where they stand for messages; `known` are the keys allowed, None for any."""

    values: Mapping[str, Any]
    where: str
    known: tuple[str, ...] | None

    def __post_init__(self) -> None:
        for key in self.values:
            if self.known is not None and key not in self.known:
                raise SettingsError(f"{key} of {self.where} is unknown; there are: {', '.join(self.known)}")

    def section(self, key: str, known: tuple[str, ...] | None) -> "_Section":
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise SettingsError(f"{key} of {self.where} must be keys and values, found {value!r:.60}")
        return _Section(value, f"{key} of {self.where}", known)

    def text(self, key: str, pattern: re.Pattern[str], allowed: str) -> str | None:
        value = self.values.get(key) or None
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise SettingsError(f"{key} of {self.where} is {value!r:.80}: allowed is {allowed}")
        return value


def _host(
    name: str,
    section: _Section,
    path: Path,
    project: str,
    folder: str,
    images: Mapping[str, str],
    sections: Mapping[str, _Section],
) -> Host:
    services = {}
    for kind in (VERIFIER, EDGE):
        if kind.name in section.values:
            given = section.section(kind.name, None)
            values = _connected(name, given, sections) if kind is EDGE else dict(given.values)
            services[kind.name] = _service(kind, values, images[kind.name], path, given.where)
    if not services:
        raise SettingsError(f"{section.where} runs nothing: it needs `verifier:` or `edge:`, or both")
    return Host(
        name,
        project,
        section.text("ssh", _LOGIN, "USER@HOST, HOST or local") or LOCAL,
        folder,
        section.text("gpus", _GPUS, "all, or a number from 1 to 99"),
        section.text("models", _FOLDER, "a path") or "models",
        services,
    )


def _service(kind: ProcessKind, values: dict[str, Any], image: str, path: Path, where: str) -> Service:
    places: dict[str, str] = {}
    files: dict[str, Path] = {}
    checked = dict(values)
    for key, value in values.items():
        if key.endswith("_file") and isinstance(value, str) and value not in ("", "off"):
            source = path.parent / value
            if not source.is_file():
                raise SettingsError(f"{key} of {where} is {value!r}, and {source} is no file")
            places[key] = f"{key}{source.suffix}"
            files[places[key]] = source
            checked[key] = str(source)
    return Service(kind, image, values, settings_of(kind, checked, where), places, files)


def _connected(name: str, edge: _Section, sections: Mapping[str, _Section]) -> dict[str, Any]:
    """The edge's settings with the verifier's address in place of its host's name."""
    values = dict(edge.values)
    named = values.pop("verifier", None)
    if named is None:
        if "verifier_address" not in values:
            raise SettingsError(
                f"{edge.where} has no verifier: it needs `verifier:`, a host of this file, or verifier_address"
            )
        return values
    if "verifier_address" in values:
        raise SettingsError(f"{edge.where} has both verifier and verifier_address; one of them is enough")
    if named not in sections or "verifier" not in sections[named].values:
        known = ", ".join(other for other, section in sections.items() if "verifier" in section.values) or "none"
        raise SettingsError(
            f"verifier of {edge.where} is {named!r}, which is no host with a verifier; there are: {known}"
        )
    if named == name:
        values["verifier_address"] = f"verifier:{VERIFIER_PORT}"
        if "verifier_ca_file" not in values:
            values["allow_plaintext"] = "true"  # between two containers of one machine
        return values
    values["verifier_address"] = _address(sections[named], edge.where)
    return values


def _address(host: _Section, asked_by: str) -> str:
    """Where the verifier of a host is found by other hosts."""
    login = host.text("ssh", _LOGIN, "USER@HOST, HOST or local") or LOCAL
    address = host.text("address", _ADDRESS, "a name or an address")
    if address is None and login == LOCAL:
        raise SettingsError(f"{host.where} is local and needs `address:`, under which {asked_by} finds it")
    verifier = host.section("verifier", None)
    if is_loopback_host(str(verifier.values.get("host") or _LOOPBACK)):
        raise SettingsError(
            f"{verifier.where} listens on loopback only, and {asked_by} is elsewhere: host must be 0.0.0.0"
        )
    found, port = address or login.rpartition("@")[2], verifier.values.get("port") or VERIFIER_PORT
    return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"
