"""Where Triton is installed, these tests take a minute, so they run only when their folder or files are named."""

from pathlib import Path

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave out the tests of a run that does not ask for them."""
    is_named = any("kernels" in Path(name.partition("::")[0]).resolve().parts for name in config.args)
    return None if is_named else True
