"""What a host is given: a compose file, a settings file for each process, and the files that those name."""

from typing import Any, Final

import yaml

from edge_agent.settings import EdgeSettings
from specedge_cli.fleet.plan import Host, Service
from specedge_verifier.settings import VerifierSettings

COMPOSE_FILE: Final = "docker-compose.yml"
PLACE: Final = "/etc/specedge"
_HEADER: Final = "# Written by `specedge fleet`, which writes it again: change the fleet's file instead.\n"
_EVERYWHERE: Final = "0.0.0.0"


def render(host: Host) -> dict[str, bytes]:
    """The files of a host, by name in its folder."""
    files: dict[str, bytes] = {COMPOSE_FILE: _yaml(_compose(host))}
    for name, service in host.services.items():
        files[f"{name}.yaml"] = _yaml(_section(service))
        files |= {path: source.read_bytes() for path, source in service.files.items()}
    return files


def _compose(host: Host) -> dict[str, Any]:
    services = {name: _container(name, host, service) for name, service in host.services.items()}
    volumes = {f"{name}-cache": None for name in host.services}
    return {"services": services, "volumes": volumes}


def _container(name: str, host: Host, service: Service) -> dict[str, Any]:
    settings = service.settings
    ports = [_published(settings.host, _number(settings, "port"))]
    metrics_port = _number(settings, "metrics_port")
    if metrics_port is not None:
        assert isinstance(settings, VerifierSettings | EdgeSettings)
        ports.append(_published(settings.metrics_host, metrics_port))
    container: dict[str, Any] = {
        "image": service.image,
        "command": ["--config", f"{PLACE}/{name}.yaml"],
        "init": True,
        "ports": [port for port in ports if port is not None],
        "volumes": [f"./{name}.yaml:{PLACE}/{name}.yaml:ro", f"{name}-cache:/home/specedge/.cache"]
        + [f"./{path}:{PLACE}/{path}:ro" for path in service.files],
        "read_only": True,
        "tmpfs": "/tmp",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{settings.drain_timeout_s + 10:.0f}s",
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
    }
    if host.gpus is not None:
        count: str | int = host.gpus if host.gpus == "all" else int(host.gpus)
        device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
        container["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return container


def _section(service: Service) -> dict[str, Any]:
    """The settings inside the container: it listens on all of its addresses, and compose decides what is published."""
    section = dict(service.section)
    for path, source in service.files.items():
        key = path.removeprefix(f"{service.kind.name}-").removesuffix(source.suffix)
        section[key] = f"{PLACE}/{path}"
    section |= {"host": _EVERYWHERE, "metrics_host": _EVERYWHERE}
    # What is published on loopback only is beyond the container's own loopback all the same.
    if service.settings.host in ("127.0.0.1", "localhost", "::1") and "tls_certificate_file" not in section:
        section["allow_plaintext" if service.kind.name == "verifier" else "allow_plaintext_http"] = True
    return {service.kind.name: section}


def _published(host: str, port: int | None) -> str | None:
    if port is None:
        return None
    bound = f"[{host}]" if ":" in host else host
    return f"{bound}:{port}:{port}"


def _number(settings: object, name: str) -> int | None:
    value: int | None = getattr(settings, name)
    return value


def _yaml(content: dict[str, Any]) -> bytes:
    return (_HEADER + yaml.safe_dump(content, sort_keys=False)).encode()
