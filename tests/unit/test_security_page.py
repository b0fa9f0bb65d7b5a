"""The tests that docs/security.md names are there, and `make test-security` runs them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists_and_is_run() -> None:
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", (ROOT / "docs" / "security.md").read_text()))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / "tests" / name).exists()]
    makefile = (ROOT / "Makefile").read_text()
    listed = makefile[makefile.index("SECURITY := ") : makefile.index("test-security: ")]
    for name in named:
        folder, _, file = name.partition("/")
        assert f"tests/{folder} " in listed or file.removeprefix("test_") in listed or f"tests/{name}" in listed, name
