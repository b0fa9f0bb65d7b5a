"""What the tests of other people's clients share: real services for all of them, and what these clients warn about."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Edge, Verifier, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without these clients the whole folder is left out; what they warn about inside is theirs."""
    are_installed = importlib.util.find_spec("litellm") is not None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
            if not are_installed:
                item.add_marker(pytest.mark.skip(reason="needs other people's clients: make test-clients"))


@pytest.fixture(scope="session")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A verifier and an edge with the embedded pair; what they held must be free again at the end."""
    folder = tmp_path_factory.mktemp("logs")
    verifier = Verifier(folder, "--num-kv-blocks", "256")
    edge = Edge(folder, "edge", verifier, "--num-draft-slots", "2048")
    with running(verifier, edge):
        yield edge.url
    for service in (verifier, edge):
        assert "Traceback" not in service.log(), service.log()
