"""Where streams may be served by processes of their own."""

import pytest

from specedge.errors import SettingsError
from specedge_cli.processes import load_verifier_settings


def test_one_process_is_the_default() -> None:
    assert load_verifier_settings([]).stream_processes == 0
    assert load_verifier_settings(["--stream-processes", "2"]).stream_processes == 2


def test_a_unix_socket_is_not_shared() -> None:
    with pytest.raises(SettingsError, match="stream_processes is 2, and host is unix:/run/v"):
        load_verifier_settings(["--stream-processes", "2", "--host", "unix:/run/v.sock"])
    assert load_verifier_settings(["--host", "unix:/run/v.sock"]).host == "unix:/run/v.sock"


def test_other_systems_do_not_divide_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SettingsError, match="only on Linux"):
        load_verifier_settings(["--stream-processes", "2"])
