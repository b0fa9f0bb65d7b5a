"""The doctor where an edge names several verifiers."""

from pathlib import Path

import pytest

from edge_agent.settings import EdgeSettings
from specedge_cli.doctor.first_verifier import named_verifiers, say_which


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("127.0.0.1:1", ("127.0.0.1:1",)),
        ("127.0.0.1:1, localhost:2", ("127.0.0.1:1", "localhost:2")),
        ("dns:localhost:7", ("localhost:7",)),
        ("file:{file}", ("127.0.0.1:3", "[::1]:4")),
    ],
)
def test_the_addresses_that_a_setting_names(text: str, named: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "verifiers"
    file.write_text("127.0.0.1:3\n\n[::1]:4  # the other\n")
    assert named_verifiers(EdgeSettings(verifier_address=text.format(file=file))) == named


def test_the_others_are_named_to_be_checked() -> None:
    (finding,) = say_which(("a:1", "b:2", "c:3"))
    assert finding.state == "warn"
    assert finding.found == "3 verifiers are named, and a:1 is the one checked here"
    assert "b:2, c:3" in (finding.change or "")
