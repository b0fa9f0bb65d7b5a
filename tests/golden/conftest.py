"""Golden text files: what the code does, written so that a reviewer can read it, and rewritten by one flag."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` holds the text to the file of that name beside the tests; --update-golden rewrites it."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).with_name(name)
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{name} is missing; make it with pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs; review it and run pytest --update-golden"

    return check
