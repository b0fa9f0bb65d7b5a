"""What a host is given: a compose file, a settings file for each process, and the files that those name."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import yaml

from edge_agent.settings import EdgeSettings
from specedge.tls.rules import is_loopback_host
from specedge_cli.fleet.plan import Host, Service
from specedge_verifier.settings import VerifierSettings

COMPOSE_FILE: Final = "docker-compose.yml"
PLACE: Final = "/etc/specedge"
SETTINGS_FILE: Final = "settings.yaml"
SETTINGS_LABEL: Final = "specedge.settings"
_HEADER: Final = "# Written by `specedge fleet`, which writes it again: change the fleet's file instead.\n"
_EVERYWHERE: Final = "0.0.0.0"
_OUTSIDE: Final = ("host", "port", "metrics_host", "metrics_port")
"""Settings of what the host publishes; inside its container a process listens where its image says."""


@dataclass(frozen=True, slots=True)
class _Inside:
    """Where a process listens inside its container, and what allows plain text there."""

    port: int
    metrics_port: int
    plaintext: str


_INSIDE: Final = {
    "verifier": _Inside(50051, 9464, "allow_plaintext"),
    "edge": _Inside(8000, 9465, "allow_plaintext_http"),
}


def render(host: Host) -> dict[str, bytes]:
    """The files of a host, by name in its folder."""
    files: dict[str, bytes] = {}
    services: dict[str, Any] = {}
    for name, service in host.services.items():
        settings = _yaml({name: _section(service)})
        files[f"{name}/{SETTINGS_FILE}"] = settings
        files |= {f"{name}/{path}": source.read_bytes() for path, source in service.files.items()}
        # Compose starts a container again when its description changes, and looks into no file. Certificates and tokens
        # need no new start: the process reads them again.
        digest = {"labels": {SETTINGS_LABEL: sha256(settings).hexdigest()}}
        services[name] = _container(name, host, service) | digest
    return {COMPOSE_FILE: _yaml(_compose(host, services)), **files}


def _compose(host: Host, services: Mapping[str, Any]) -> dict[str, Any]:
    volumes = {"models": None, **{f"{name}-cache": None for name in host.services}}
    return {"services": dict(services), "volumes": volumes}


def _container(name: str, host: Host, service: Service) -> dict[str, Any]:
    settings, inside = service.settings, _INSIDE[name]
    assert isinstance(settings, VerifierSettings | EdgeSettings)
    ports = [_published(settings.host, settings.port, inside.port)]
    if settings.metrics_port is not None:
        ports.append(_published(settings.metrics_host, settings.metrics_port, inside.metrics_port))
    container: dict[str, Any] = {
        "image": service.image,
        "command": ["--config", f"{PLACE}/{SETTINGS_FILE}"],
        "init": True,
        "ports": ports,
        "volumes": [
            f"{host.models}:/models",
            f"{name}-cache:/cache",
            f"./{name}:{PLACE}:ro",  # the folder: a file that is replaced in it is seen inside
        ],
        "read_only": True,
        "tmpfs": "/tmp",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 1024,
        "restart": "unless-stopped",
        "stop_grace_period": f"{settings.drain_timeout_s + 10:.0f}s",
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
    }
    if settings.tls_certificate_file is not None:
        container["healthcheck"] = {"test": ["CMD", *_health(name, service)]}
    if host.gpus is not None:
        count: str | int = host.gpus if host.gpus == "all" else int(host.gpus)
        device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
        container["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return container


def _section(service: Service) -> dict[str, Any]:
    """The settings inside the container: files at their places there, and all of its addresses listened to."""
    name = service.kind.name
    section = {key: value for key, value in service.section.items() if key not in _OUTSIDE}
    section |= {setting: f"{PLACE}/{path}" for setting, path in service.places.items()}
    section["metrics_host"] = _EVERYWHERE
    # What the host publishes on loopback only may be plain text inside too: nothing but the host reaches it.
    if is_loopback_host(service.settings.host) and "tls_certificate_file" not in section:
        section[_INSIDE[name].plaintext] = "true"
    return section


def _health(name: str, service: Service) -> list[str]:
    """How a process with TLS is asked whether it is ready; the image's own check speaks plain text."""
    places = {setting: f"{PLACE}/{path}" for setting, path in service.places.items()}
    if name == "edge":
        return ["specedge", "health", "https://localhost:8000", "--ca-file", places["tls_certificate_file"]]
    trusted = places.get("tls_client_ca_file", places["tls_certificate_file"])
    command = ["specedge", "health", "localhost:50051", "--ca-file", trusted]
    if "tls_client_ca_file" in places:
        command += ["--certificate-file", places["tls_certificate_file"], "--key-file", places["tls_key_file"]]
    return command


def _published(host: str, outside: int, inside: int) -> str:
    return f"[{host}]:{outside}:{inside}" if ":" in host else f"{host}:{outside}:{inside}"


def _yaml(content: dict[str, Any]) -> bytes:
    return (_HEADER + yaml.safe_dump(content, sort_keys=False)).encode()
