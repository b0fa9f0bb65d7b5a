"""Options and settings of the whole suite."""

import pytest
from hypothesis import settings

settings.register_profile("default", derandomize=True, database=None, deadline=None, print_blob=False)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files with what the code does now"
    )
    parser.addoption("--api-cases", type=int, help="requests that are tried on each route, and on the real pair too")
