"""Options and settings of the whole suite."""

import os
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


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist share the cores, so torch gets one thread in each; it has not been imported yet."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Forwards on one thread, for tests whose processes and threads have only few cores between them."""
    import torch  # not by the tests that need none

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the building alone: without optimisation it takes a fifth of the time, and computes the same."""
    from specedge.model.native import build

    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
