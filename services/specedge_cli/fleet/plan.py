"""The fleet's file, read and checked: which processes run on which host, with which settings.

    images: {verifier: specedge-verifier, edge: specedge-edge}   # what hosts pull, or have; these are the defaults
    folder: specedge                                             # on every host, below the login's home
    hosts:
      gpu-1:
        ssh: ops@gpu-1.example.com                               # or `local`
        gpus: all                                                # for the containers of this host; none if left out
        verifier: {target_model: Qwen/Qwen3-14B, ...}            # settings, as in a settings file
      shop-1:
        ssh: ops@shop-1.example.com
        edge: {verifier: gpu-1, draft_model: Qwen/Qwen3-1.7B, ...}

`verifier` of an edge names a host of this file, at the name it is logged into; `verifier_address` names any other. Settings
that end in `_file` name files beside this one: each goes to its host.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specedge.errors import SettingsError
from specedge.settings import ProcessSettings
from specedge.settings_sources import ProcessKind, load_yaml, settings_of
from specedge_cli.processes import EDGE, VERIFIER

LOCAL: Final = "local"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOGIN: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)")
_FOLDER: Final = re.compile(r"[A-Za-z0-9_./-]+")
_IMAGE: Final = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*")
_GPUS: Final = re.compile(r"all|\d{1,2}")
MAX_HOSTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Service:
    """A process of a host.

    Attributes:
        kind: verifier or edge.
        image: what its container is made of.
        section: its settings as the file has them, files at their places on the host.
        settings: the same, checked.
        files: that it needs, by their name on the host.
    """

    kind: ProcessKind
    image: str
    section: dict[str, Any]
    settings: ProcessSettings
    files: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Host:
    """A machine and what runs on it.

    Attributes:
        name: in the file.
        login: what ssh is told; `local` is this machine.
        folder: where its files lie there.
        gpus: "all" or a number, for its containers; None for none.
        services: by name, "verifier" and "edge".
    """

    name: str
    login: str
    folder: str
    gpus: str | None
    services: dict[str, Service]

    @property
    def address(self) -> str:
        """The name other hosts know it by."""
        return "127.0.0.1" if self.login == LOCAL else self.login.rpartition("@")[2]


def read_fleet(path: Path) -> tuple[Host, ...]:
    """The hosts of a fleet's file, those with verifiers first.

    Raises:
        SettingsError: the file is wrong; the message names host, key and what is allowed.
    """
    content = load_yaml(path, "fleet")
    _refuse_unknown(content, ("images", "folder", "hosts"), str(path))
    images = {"verifier": "specedge-verifier", "edge": "specedge-edge"}
    given = _section(content.get("images", {}), f"images of {path}")
    _refuse_unknown(given, tuple(images), f"images of {path}")
    for kind, image in given.items():
        images[kind] = _matching(_IMAGE, image, f"images.{kind} of {path}", "the name of an image")
    folder = _matching(_FOLDER, content.get("folder", "specedge"), f"folder of {path}", "a path")
    hosts = _section(content.get("hosts", {}), f"hosts of {path}")
    if not 1 <= len(hosts) <= MAX_HOSTS:
        raise SettingsError(f"{path} has {len(hosts)} hosts; 1 to {MAX_HOSTS} are allowed")
    verifiers = {name: _verifier_address(name, hosts[name], path) for name in hosts}
    plans = [_host(name, _section(hosts[name], f"{name} of {path}"), path, folder, images, verifiers) for name in hosts]
    return tuple(sorted(plans, key=lambda host: "verifier" not in host.services))


def _host(
    name: str, section: dict[str, Any], path: Path, folder: str, images: dict[str, str], verifiers: dict[str, str | None]
) -> Host:
    where = f"{name} of {path}"
    _matching(_NAME, name, f"a host of {path}", "small letters, digits and hyphens, at most 63")
    _refuse_unknown(section, ("ssh", "gpus", "verifier", "edge"), where)
    gpus = section.get("gpus")
    if gpus is not None:
        _matching(_GPUS, gpus, f"gpus of {where}", "all or a number")
    services = {}
    for kind in (VERIFIER, EDGE):
        if kind.name in section:
            settings = dict(_section(section[kind.name], f"{kind.name} of {where}"))
            if kind is EDGE:
                _connect(settings, verifiers, f"edge of {where}")
            services[kind.name] = _service(kind, settings, images[kind.name], path, f"{kind.name} of {where}")
    if not services:
        raise SettingsError(f"{where} runs nothing: it needs `verifier:` or `edge:`, or both")
    login = _matching(_LOGIN, section.get("ssh", LOCAL), f"ssh of {where}", "USER@HOST, HOST or local")
    return Host(name, login, f"{folder.rstrip('/')}/{name}", gpus, services)


def _service(kind: ProcessKind, settings: dict[str, Any], image: str, path: Path, where: str) -> Service:
    files: dict[str, Path] = {}
    for key, value in settings.items():
        if key.endswith("_file") and isinstance(value, str) and value:
            source = path.parent / value
            if not source.is_file():
                raise SettingsError(f"{key} of {where} is {value!r}, and there is no file {source}")
            files[f"{kind.name}-{key}{source.suffix}"] = source
    # Checked as it stands here; on the host the files have other places.
    checked = {key: str(path.parent / value) if key.endswith("_file") else value for key, value in settings.items()}
    return Service(kind, image, settings, settings_of(kind, checked, where), files)


def _connect(settings: dict[str, Any], verifiers: dict[str, str | None], where: str) -> None:
    """Turns the name of a verifier's host into its address."""
    named = settings.pop("verifier", None)
    if named is None:
        if "verifier_address" not in settings:
            raise SettingsError(f"{where} names no verifier: it needs `verifier:`, a host of this file, or verifier_address")
        return
    if "verifier_address" in settings:
        raise SettingsError(f"{where} has both verifier and verifier_address; one of them is enough")
    address = verifiers.get(named)
    if address is None:
        known = ", ".join(name for name, value in verifiers.items() if value) or "none"
        raise SettingsError(f"verifier of {where} is {named!r}, which is no host with a verifier; there are: {known}")
    settings["verifier_address"] = address


def _verifier_address(name: str, section: Any, path: Path) -> str | None:
    """Where the verifier of a host is reached; None where there is none, or the host's section is wrong."""
    if not isinstance(section, dict) or not isinstance(section.get("verifier"), dict):
        return None
    login = section.get("ssh", LOCAL)
    host = "127.0.0.1" if login == LOCAL else str(login).rpartition("@")[2]
    settings = settings_of(VERIFIER, {"port": section["verifier"].get("port", "")}, f"verifier of {name} of {path}")
    return f"{host}:{getattr(settings, 'port')}"


def _section(value: Any, where: str) -> dict[str, Any]:
    if value == "":
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must be keys and values, found {value!r:.60}")
    return value


def _refuse_unknown(section: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in section:
        if key not in known:
            raise SettingsError(f"{key} of {where} is unknown; there are: {', '.join(known)}")


def _matching(pattern: re.Pattern[str], value: Any, where: str, allowed: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise SettingsError(f"{where} is {value!r:.80}: allowed is {allowed}")
    return value
