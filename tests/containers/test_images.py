"""What the images hold and what not."""

import re

import pytest
import yaml
from container_stack import ROOT, Tools, run

DOCKERFILES = ("Dockerfile.server", "Dockerfile.edge")
BUILDERS = (
    "gcc*", "g++*", "cc", "c++", "clang*", "tcc", "cc1*", "as", "ld", "ld.bfd", "ld.gold", "ld.lld",
    "make", "cmake", "ninja",
)  # fmt: skip


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_plain_builder_understands_it(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    assert not re.search(r"^#\s*syntax=|^RUN\s+--|<<", text, re.MULTILINE)


def test_both_share_all_but_their_last_lines(tools: Tools, images: dict[str, str]) -> None:
    server, edge = (tools.inspect(images[name])["RootFS"]["Layers"] for name in ("VERIFIER_IMAGE", "EDGE_IMAGE"))
    assert server == edge


@pytest.mark.parametrize("name", ["VERIFIER_IMAGE", "EDGE_IMAGE"])
def test_nothing_in_it_builds(tools: Tools, images: dict[str, str], name: str) -> None:
    names = [word for pattern in BUILDERS for word in ("-o", "-name", pattern)][1:]
    find = ["find", "/", "-xdev", "-perm", "/111", "!", "-type", "d", "(", *names, ")"]
    command = [*tools.docker, "run", "--rm", "--network", "none", "--user", "0", "--entrypoint", find[0]]
    found = run([*command, images[name], *find[1:]]).splitlines()
    assert [line for line in found if line.startswith("/")] == []


@pytest.mark.parametrize("name", ["VERIFIER_IMAGE", "EDGE_IMAGE"])
def test_an_image_for_the_cpu_has_no_cuda(tools: Tools, images: dict[str, str], name: str) -> None:
    code = (
        "import importlib.metadata as m, torch; assert torch.version.cuda is None; "
        "names = [d.name for d in m.distributions()]; "
        "assert not [name for name in names if name.startswith(('nvidia', 'triton', 'pip'))]; print('none')"
    )
    command = [*tools.docker, "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    assert run([*command, "--entrypoint", "/opt/specedge/bin/python", images[name], "-c", code]).endswith("none\n")


@pytest.mark.parametrize(
    "files",
    [
        ("docker-compose.yml",),
        ("docker-compose.server.yml",),
        ("docker-compose.edge.yml",),
        *(
            (f"docker-compose{part}.yml", *overrides)
            for part in ("", ".server", ".edge")
            for overrides in (
                ("docker-compose.gpu.yml",),
                ("docker-compose.tls.yml",),
                ("docker-compose.gpu.yml", "docker-compose.tls.yml"),
            )
        ),
    ],
    ids=" ".join,
)
def test_compose_takes_the_files(tools: Tools, files: tuple[str, ...]) -> None:
    text = tools.config(files)
    for service in ("verifier", "edge"):
        if f"docker-compose.{'server' if service == 'verifier' else 'edge'}.yml" in files:
            assert f"  {service}:" in text
    assert ("/certificates/ca.crt" in text) == ("docker-compose.tls.yml" in files)
    assert ("driver: nvidia" in text) == ("docker-compose.gpu.yml" in files)


def test_grafana_finds_what_is_mounted(tools: Tools) -> None:
    volumes = yaml.safe_load(tools.config(["docker-compose.yml"]))["services"]["grafana"]["volumes"]
    mounted = {volume.split(":")[1] if isinstance(volume, str) else volume["target"] for volume in volumes}
    provisioning = ROOT / "deploy" / "grafana" / "provisioning" / "dashboards" / "specedge.yml"
    (provider,) = yaml.safe_load(provisioning.read_text(encoding="utf-8"))["providers"]
    assert provider["options"]["path"] in mounted


def test_every_variable_is_explained() -> None:
    used = {
        name
        for file in ROOT.glob("docker-compose*.yml")
        for name in re.findall(r"\$\{([A-Z_]+)", file.read_text(encoding="utf-8"))
    }
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert used == explained
