"""Options and settings of the whole suite."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("default", derandomize=True, database=None, deadline=None, print_blob=False)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files with what the code does now"
    )
    parser.addoption("--api-cases", type=int, help="requests that are tried on each route, and on the real pair too")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Forwards on one thread, for tests whose processes and threads have only few cores between them."""
    import torch  # not by the tests that need none

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
