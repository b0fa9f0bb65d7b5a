"""A real deployment under load, scraped by a real Prometheus; both live as long as the module that asks for them."""

import shutil
from collections.abc import Iterator

import pytest
from monitored import Monitored, monitored


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus; Debian and Ubuntu: apt install prometheus")
    with monitored(tmp_path_factory.mktemp("monitored")) as deployment:
        deployment.wait_for_history()
        yield deployment
