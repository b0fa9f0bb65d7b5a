"""What SpecEdge is made of: the licences of everything that is installed, and a bill of materials. Needs no network.

python deploy/supply_chain.py licences     # exit code 1 when one is not in the list of those allowed
python deploy/supply_chain.py sbom         # CycloneDX 1.6 as JSON, the same bytes for the same packages
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from packaging.requirements import Requirement

OURS = "specedge"

ALLOWED = frozenset(
    (
        *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
        *("CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"),
        "LicenseRef-NVIDIA",
    )
)
"""Permissive licences; MPL-2.0, whose files stay under it and ask nothing of what uses them; and NVIDIA's own terms for
the CUDA libraries that torch brings along for GPUs."""

SPELLINGS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""What packages write where SPDX has a name. A BSD licence without a number is taken for the longer one."""

READ_BY_HAND = {
    "torchao": "BSD-3-Clause",  # its metadata names none, its LICENSE file is this one
    "nvidia-": "LicenseRef-NVIDIA",
    "cuda-": "LicenseRef-NVIDIA",
}
"""By the name of a package, or by what it begins with where that ends in a dash."""


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package.

    Args:
        licence: an SPDX expression; what the package itself says where that is not understood.
        is_allowed: whether each of its licences is, or one of those to choose from.
        is_needed: whether SpecEdge without extras needs it.
        needs: names of installed packages.
    """

    name: str
    version: str
    licence: str
    is_allowed: bool
    is_needed: bool
    needs: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(package: Distribution) -> str:
    """What its metadata says, in the order in which it can be trusted."""
    name, said = normal(package.name), package.metadata
    for known, licence in READ_BY_HAND.items():
        if name == known or (known.endswith("-") and name.startswith(known)):
            return licence
    if expression := said.get("License-Expression"):
        return expression
    field = said.get("License") or ""
    shelf = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License ::")]
    if is_allowed(spelled := _spell(field)):
        return spelled
    if shelf and is_allowed(spelled := " AND ".join(map(_spell, shelf))):
        return spelled
    return (field.partition("\n")[0] or ", ".join(shelf) or "none named")[:80]


def _spell(text: str) -> str:
    return SPELLINGS.get(text.strip().lower(), text.strip())


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression asks for nothing but allowed licences, a choice counting as its best part."""
    parts = re.split(r"\s+AND\s+", expression.replace("(", "").replace(")", ""))
    return all(any(choice.strip() in ALLOWED for choice in re.split(r"\s+OR\s+", part)) for part in parts)


def requirements(package: Distribution, extras: Iterable[str] = ("",)) -> set[str]:
    """Names of what a package needs on this machine."""
    found = set()
    for line in package.requires or ():
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            found.add(normal(needed.name))
    return found


def installed() -> list[Package]:
    """Everything in this environment but ourselves, pip and setuptools, by name."""
    found = {normal(package.name): package for package in distributions()}
    needed, new = set(), {OURS}
    while new:
        needed |= new
        new = {name for each in new if each in found for name in requirements(found[each])} - needed
    packages = []
    for name in sorted(found.keys() - {OURS, "pip", "setuptools"}):
        package, licence = found[name], licence_of(found[name])
        needs = tuple(sorted(requirements(package) & found.keys()))
        packages.append(Package(name, package.version, licence, is_allowed(licence), name in needed, needs))
    return packages


def check_licences(packages: list[Package]) -> int:
    """Print what is not allowed; the exit code."""
    refused = [package for package in packages if not package.is_allowed]
    for package in refused:
        print(f"{package.name} {package.version}: {package.licence}: not in ALLOWED of {__file__}", file=sys.stderr)
    print(f"{len(packages)} packages: {len(refused)} with a licence that is not allowed")
    return bool(refused)


def bill_of_materials(packages: list[Package]) -> dict[str, Any]:
    """CycloneDX 1.6; optional is what tests, checks and extras brought."""
    own = {normal(package.name): package for package in distributions()}[OURS]
    root = f"pkg:pypi/{OURS}@{own.version}"
    purls = {package.name: package.purl for package in packages}
    needs = {root: sorted(purls[name] for name in requirements(own) if name in purls)}
    needs |= {package.purl: [purls[name] for name in package.needs if name in purls] for package in packages}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, ' '.join([root, *purls.values()]))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": OURS,
                "version": own.version,
                "purl": root,
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": [
            {
                "type": "library",
                "bom-ref": package.purl,
                "name": package.name,
                "version": package.version,
                "purl": package.purl,
                "scope": "required" if package.is_needed else "optional",
                "licenses": [
                    {"expression": package.licence} if package.is_allowed else {"license": {"name": package.licence}}
                ],
            }
            for package in packages
        ],
        "dependencies": [{"ref": ref, "dependsOn": on} for ref, on in needs.items()],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("licences", "sbom"))
    if parser.parse_args(arguments).what == "licences":
        return check_licences(installed())
    print(json.dumps(bill_of_materials(installed()), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
