"""`specedge fleet`: what each host is given, the commands it is sent, and two hosts that are both this machine."""

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from specedge.errors import SettingsError
from specedge.settings_sources import settings_of
from specedge_cli.certs import make_certs
from specedge_cli.fleet.command import fleet
from specedge_cli.fleet.plan import read_fleet
from specedge_cli.fleet.remote import argv, compose, send_files
from specedge_cli.fleet.render import render
from specedge_cli.processes import EDGE, VERIFIER

FLEET = """
folder: {folder}
images: {{edge: registry.example.com/edge:1}}
hosts:
  shop-1:
    edge: {{verifier: gpu-1, verifier_ca_file: ca.crt, verifier_token_file: token, host: 0.0.0.0,
            allow_plaintext_http: true, port: 8080, metrics_port: off, num_threads: 2}}
  gpu-1:
    ssh: ops@gpu-1.example.com
    address: gpu-1.internal
    gpus: all
    models: /data/models
    verifier: {{host: 0.0.0.0, tls_certificate_file: server.crt, tls_key_file: server.key, drain_timeout_s: 90}}
"""


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with certificates as `specedge certs` makes them, and a token."""
    assert make_certs(["--out", str(tmp_path), "--server-name", "gpu-1.internal"]) == 0
    (tmp_path / "token").write_text("secret\n")
    return tmp_path


def written(folder: Path, text: str = FLEET) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text.format(folder=folder / "hosts"))
    return path


def loaded(files: dict[str, bytes], name: str) -> Any:
    return yaml.safe_load(files[name])


def test_each_host_gets_its_processes_settings_and_files(certificates: Path) -> None:
    gpu, shop = read_fleet(written(certificates))
    assert (gpu.name, shop.name) == ("gpu-1", "shop-1"), "verifiers first"

    files = render(gpu)
    assert sorted(files) == [
        "docker-compose.yml",
        "verifier/settings.yaml",
        "verifier/tls_certificate_file.crt",
        "verifier/tls_key_file.key",
    ]
    container = loaded(files, "docker-compose.yml")["services"]["verifier"]
    assert container["image"] == "specedge-verifier"
    assert container["ports"] == ["0.0.0.0:50051:50051", "127.0.0.1:9464:9464"]
    assert container["stop_grace_period"] == "100s"
    assert container["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "all"
    assert "/data/models:/models" in container["volumes"]
    assert container["healthcheck"]["test"][:4] == ["CMD", "specedge", "health", "localhost:50051"]
    section = loaded(files, "verifier/settings.yaml")["verifier"]
    assert section["tls_key_file"] == "/etc/specedge/tls_key_file.key"
    assert not {"host", "port", "allow_plaintext"} & section.keys()

    files = render(shop)
    container = loaded(files, "docker-compose.yml")["services"]["edge"]
    assert container["image"] == "registry.example.com/edge:1"
    assert container["ports"] == ["0.0.0.0:8080:8000"]
    assert "deploy" not in container and "healthcheck" not in container
    section = loaded(files, "edge/settings.yaml")["edge"]
    assert section["verifier_address"] == "gpu-1.internal:50051"
    assert section["verifier_token_file"] == "/etc/specedge/verifier_token_file"
    assert files["edge/verifier_token_file"] == b"secret\n"


def test_rendered_settings_are_settings(certificates: Path) -> None:
    """What is written is read by the processes themselves, with the files where compose puts them."""
    for host, kind in zip(read_fleet(written(certificates)), (VERIFIER, EDGE), strict=True):
        files = render(host)
        section = loaded(files, f"{kind.name}/settings.yaml")[kind.name]
        for key, value in section.items():
            if str(value).startswith("/etc/specedge/"):
                place = certificates / str(value).rpartition("/")[2]
                place.write_bytes(files[f"{kind.name}/{place.name}"])
                section[key] = str(place)
        texts = {key: str(value) for key, value in section.items()}
        assert settings_of(kind, texts, "test").metrics_host == "0.0.0.0"  # type: ignore[attr-defined]


def test_settings_that_change_start_the_process_again_and_certificates_do_not(certificates: Path) -> None:
    def label(text: str) -> str:
        _, shop = read_fleet(written(certificates, text))
        found: str = loaded(render(shop), "docker-compose.yml")["services"]["edge"]["labels"]["specedge.settings"]
        return found

    before = label(FLEET)
    assert label(FLEET.replace("num_threads: 2", "num_threads: 3")) != before
    (certificates / "token").write_text("another\n")
    assert label(FLEET) == before


def test_an_edge_beside_its_verifier_asks_it_over_the_containers_network(tmp_path: Path) -> None:
    path = written(tmp_path, "hosts:\n  box:\n    verifier:\n    edge: {{verifier: box}}\n")
    section = loaded(render(read_fleet(path)[0]), "edge/settings.yaml")["edge"]
    assert (section["verifier_address"], section["allow_plaintext"]) == ("verifier:50051", "true")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 hosts; 1 to 1000 are allowed"),
        ("hosts: [a]", "hosts of .* must be keys and values, found"),
        ("hosts:\n  A b:\n    edge:", "called 'A b': allowed are small letters"),
        (
            "hosts:\n  a:\n    ssh: -oProxyCommand=x\n    verifier:",
            "ssh of a of .* is '-oProxyCommand=x': allowed is USER@HOST",
        ),
        ("hosts:\n  a:\n    verifer:", "verifer of a of .* is unknown; there are: ssh, address"),
        ("hosts:\n  a:\n    gpus: 0\n    verifier:", "gpus of a of .* is '0': allowed is all, or a number"),
        ("hosts:\n  a:\n    ssh: b", "a of .* runs nothing"),
        ("hosts:\n  a:\n    edge:", "edge of a of .* has no verifier"),
        ("hosts:\n  a:\n    edge: {verifier: b}", "is 'b', which is no host with a verifier; there are: none"),
        (
            "hosts:\n  a:\n    verifier: {port: 7}\n  b:\n    edge: {verifier: a}",
            "a of .* is local and needs `address:`",
        ),
        ("hosts:\n  a:\n    ssh: a\n    verifier:\n  b:\n    edge: {verifier: a}", "listens on loopback only"),
        ("hosts:\n  a:\n    verifier: {max_batch: 7}", "max_batch = '7' .* is no setting of the verifier"),
        ("hosts:\n  a:\n    verifier: {host: 0.0.0.0}", "allow_plaintext"),
        ("hosts:\n  a:\n    verifier: {tenants_file: none.yaml}", "tenants_file of verifier of a of .* is no file"),
        ("folder: ../x y\nhosts:\n  a:\n    verifier:", "folder of .* is '../x y': allowed is a path"),
        ("images: {server: x}\nhosts:\n  a:\n    verifier:", "server of images of .* is unknown"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_fleet(path)


def test_commands_go_through_ssh_as_one_quoted_line(certificates: Path) -> None:
    gpu, _ = read_fleet(written(certificates, FLEET.replace("{folder}", "a/b")))
    program = argv(gpu, compose(gpu, ["up", "-d"], 10.0))
    assert program[0] == "ssh" and program[-3:-1] == ["--", "ops@gpu-1.example.com"]
    assert program[-1].startswith("cd a/b/gpu-1 && if docker compose version")
    assert program[-1].count("-p specedge-gpu-1 up -d") == 2
    sent = send_files(gpu, {"a/x": b"1"})
    assert sent.line == "mkdir -p a/b/gpu-1 && chmod 700 a/b/gpu-1 && tar -x -p -f - -C a/b/gpu-1"
    with tarfile.open(fileobj=io.BytesIO(sent.sent)) as archive:
        assert archive.getnames() == ["a", "a/x"]


STAND_IN_DOCKER = """#!/bin/sh
# Notes what it was asked, and says of every project that its process runs.
echo "$@" >> "$NOTES"
case "$*" in
    *"-p specedge-broken up"*) echo "no space left on device" >&2; exit 1 ;;
    ps*) echo '{"service":"verifier","status":"Up 2 minutes (healthy)"}' ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Docker, and for ssh, which runs its line here; the file that notes what Docker was asked."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    for name, text in (
        ("docker", STAND_IN_DOCKER),
        ("ssh", '#!/bin/sh\nfor line in "$@"; do :; done\nexec sh -c "$line"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(notes))
    notes.touch()
    return notes


TWO_HOSTS = """
folder: {folder}
hosts:
  here:
    verifier: {{port: 7001}}
  there:
    ssh: ops@there.example.com
    verifier: {{port: 7002}}
"""


def said(arguments: list[str]) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=400, color_system=None)
    code = fleet(arguments, console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_two_hosts_are_started_asked_and_stopped(docker: Path, tmp_path: Path) -> None:
    path = str(written(tmp_path, TWO_HOSTS))
    code, text = said(["up", path])
    assert code == 0 and "here: done (here)" in text and "there: done (ops@there.example.com)" in text
    for name, port in (("here", 7001), ("there", 7002)):
        folder = tmp_path / "hosts" / name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        container = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]["verifier"]
        assert container["ports"][0] == f"127.0.0.1:{port}:50051"
    assert said(["status", path])[0] == 0
    assert said(["down", path, "--only", "there"])[0] == 0
    asked = docker.read_text().splitlines()
    assert "compose -p specedge-here up -d --remove-orphans" in asked
    assert "compose -p specedge-there down --remove-orphans" in asked
    assert "compose -p specedge-here down --remove-orphans" not in asked


def test_a_host_that_fails_is_named_and_holds_up_no_other(docker: Path, tmp_path: Path) -> None:
    path = str(written(tmp_path, TWO_HOSTS.replace("here:\n", "broken:\n", 1)))
    code, text = said(["up", path])
    assert code == 1
    assert "broken: exit code 1 of: cd" in text and "no space left on device" in text
    assert "there: done" in text


def test_status_shows_what_is_missing(docker: Path, tmp_path: Path) -> None:
    path = str(written(tmp_path, "hosts:\n  box:\n    verifier:\n    edge: {{verifier: box}}\n"))
    code, text = said(["status", path])
    assert code == 1
    assert "Up 2 minutes (healthy)" in text and "not there" in text


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_a_dry_run_prints_commands_and_runs_none(command: str, docker: Path, tmp_path: Path) -> None:
    code, text = said([command, str(written(tmp_path, TWO_HOSTS)), "--dry-run"])
    assert code == 0 and "ops@there.example.com" in text and "docker" in text
    assert not docker.read_text() and not (tmp_path / "hosts").exists()


def test_render_writes_and_touches_no_host(docker: Path, certificates: Path) -> None:
    out = certificates / "out"
    assert said(["render", str(written(certificates)), "--out", str(out)])[0] == 0
    written_files = [str(path.relative_to(out)) for path in sorted(out.rglob("*")) if path.is_file()]
    assert written_files[-4:] == [
        "shop-1/docker-compose.yml",
        "shop-1/edge/settings.yaml",
        "shop-1/edge/verifier_ca_file.crt",
        "shop-1/edge/verifier_token_file",
    ]
    assert not docker.read_text()


def test_an_unknown_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--only x: there is no such host; there are: here, there"):
        fleet(["status", str(written(tmp_path, TWO_HOSTS)), "--only", "x"])
