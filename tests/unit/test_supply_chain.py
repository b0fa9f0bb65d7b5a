"""Licences of what is installed, and the bill of materials."""

import importlib.util
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def supply_chain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply_chain", ROOT / "deploy" / "supply_chain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Described(Distribution):
    """A package that is not there, with some metadata."""

    def __init__(self, **fields: str) -> None:
        self._message = Message()
        for name, value in {"Name": "thing", "Version": "1", **fields}.items():
            for line in value.split("|"):
                self._message[name.replace("_", "-")] = line

    @property
    def metadata(self) -> Any:
        return self._message

    def read_text(self, filename: str) -> None:
        return None

    def locate_file(self, path: Any) -> Any:
        return path


SHELF = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("fields", "licence", "is_allowed"),
    [
        ({"License_Expression": "MIT"}, "MIT", True),
        ({"License_Expression": "(MIT OR GPL-3.0-only) AND BSD-3-Clause"}, None, True),
        ({"License_Expression": "MIT AND GPL-3.0-only"}, None, False),
        ({"License_Expression": "GPL-3.0-only", "License": "MIT"}, "GPL-3.0-only", False),
        ({"License": "Apache 2.0 License"}, "Apache-2.0", True),
        ({"License": "Copyright ... all of it", "Classifier": SHELF + "BSD License"}, "BSD-3-Clause", True),
        ({"Classifier": f"{SHELF}MIT License|{SHELF}GNU General Public License v3 (GPLv3)"}, None, False),
        ({"License": "Do as I say"}, "Do as I say", False),
        ({}, "none named", False),
        ({"Name": "nvidia-cublas-cu12", "License": "NVIDIA Proprietary Software"}, "LicenseRef-NVIDIA", True),
    ],
)
def test_what_metadata_says_is_understood_or_refused(
    supply_chain: ModuleType, fields: dict[str, str], licence: str | None, is_allowed: bool
) -> None:
    found = supply_chain.licence_of(Described(**fields))
    assert licence is None or found == licence
    assert supply_chain.is_allowed(found) is is_allowed


def test_every_installed_package_has_an_allowed_licence(
    supply_chain: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert supply_chain.main(["licences"]) == 0, capsys.readouterr().err


def test_the_bill_of_materials_names_what_is_needed_and_by_whom(supply_chain: ModuleType) -> None:
    packages = supply_chain.installed()
    bill = supply_chain.bill_of_materials(packages)
    assert bill == supply_chain.bill_of_materials(supply_chain.installed()), "the same bytes for the same packages"
    scopes = {component["name"]: component["scope"] for component in bill["components"]}
    assert len(scopes) == len(packages) and "specedge" not in scopes
    assert scopes["torch"] == scopes["grpcio"] == scopes["httptools"] == "required"
    assert scopes["pytest"] == scopes["ruff"] == "optional"
    refs = {component["bom-ref"] for component in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {each["ref"] for each in bill["dependencies"]} == refs
    assert all(set(each["dependsOn"]) <= refs for each in bill["dependencies"])
