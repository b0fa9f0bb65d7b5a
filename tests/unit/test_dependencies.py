"""Whatever the sources import of other projects is declared in pyproject.toml, where it is needed."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVICES = EXTRAS.keys() - {"bench", "clients", "dev"}  # found by probing, and done without
PROCESSES = ("edge_agent", "services/specedge", "services/specedge_cli", "services/specedge_verifier")


def imported(folder: Path) -> dict[str, Path]:
    """Top-level modules that a folder's files import anywhere in them, each with one such file."""
    return {name.partition(".")[0]: file for file in folder.rglob("*.py") for name in _names(file)}


def _names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]):
                yield module


def is_ours(module: str) -> bool:
    folders = (ROOT, ROOT / "services", ROOT / "tests", ROOT / "proto")
    return any((folder / module).is_dir() or (folder / f"{module}.py").is_file() for folder in folders)


def declared(*extras: str) -> set[str]:
    """Normalised names of the distributions that are required."""
    requirements = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    return {_normalised(re.split(r"[\[<>=!~; ]", text)[0]) for text in requirements}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(folder: Path, known: set[str]) -> dict[str, str]:
    providers = packages_distributions()
    return {
        module: str(file.relative_to(ROOT))
        for module, file in imported(folder).items()
        if module not in sys.stdlib_module_names
        and not is_ours(module)
        and not known & {_normalised(name) for name in providers.get(module, [module])}
    }


@pytest.mark.parametrize("folder", PROCESSES)
def test_processes_import_what_an_installation_has(folder: str) -> None:
    assert undeclared(ROOT / folder, declared(*FOR_DEVICES)) == {}


def test_the_bench_imports_what_its_extra_has() -> None:
    known = declared("bench") | {"pyarrow"}  # whoever reads a Parquet file without it is told to install it
    assert undeclared(ROOT / "services" / "specedge_bench", known) == {}


@pytest.mark.parametrize("folder", ["benchmarks", "tests", "proto"])
def test_tools_and_tests_import_what_developers_have(folder: str) -> None:
    assert undeclared(ROOT / folder, declared(*EXTRAS)) == {}


def test_an_import_that_is_not_declared_is_found() -> None:
    without = declared(*FOR_DEVICES) - {"tqdm", "protobuf", "googleapis-common-protos"}
    found = undeclared(ROOT / "services" / "specedge", without)
    assert found.keys() == {"tqdm", "google"}
    assert found["tqdm"].startswith("services/specedge/model/")
