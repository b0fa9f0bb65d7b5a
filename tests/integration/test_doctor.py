"""`specedge doctor` against real verifiers: all well, and each thing that an operator gets wrong is named."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import HOST, Verifier, quiet_port, running
from tls_support import Authority, Paths

from specedge.model.embedded import resolve_model
from specedge.tls.diagnosis import ClientTls
from specedge_cli.main import main
from specedge_verifier.tenants import spell_tenant

pytestmark = pytest.mark.usefixtures("one_thread", "clean_environment")

Doctor = Callable[..., "Answer"]


@dataclass(frozen=True)
class Answer:
    """What the doctor said."""

    exit_code: int
    content: dict[str, Any]

    def finding(self, name: str, group: str = "") -> dict[str, Any]:
        """The one finding of this name."""
        found = [check for check in self.content["checks"] if check["name"] == name and group in check["group"]]
        assert len(found) == 1, f"{name}: {self.content['checks']}"
        return dict(found[0])

    @property
    def failed(self) -> list[str]:
        return [check["name"] for check in self.content["checks"] if check["state"] == "fail"]


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SPECEDGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def ask(*arguments: str) -> Answer:
        capsys.readouterr()
        exit_code = main(["doctor", *arguments, "--json"])
        content = json.loads(capsys.readouterr().out)
        assert content["is_well"] is (exit_code == 0)
        return Answer(exit_code, content)

    return ask


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    verifier = Verifier(tmp_path_factory.mktemp("logs"), "--num-kv-blocks", "72")
    with running(verifier):
        yield verifier


def edge_flags(address: str, *flags: str) -> list[str]:
    ports = ["--port", str(quiet_port()), "--metrics-port", str(quiet_port())]
    return ["edge", "--verifier-address", address, "--num-threads", "1", "--device", "cpu", *ports, *flags]


def test_an_edge_that_will_work(doctor: Doctor, verifier: Verifier) -> None:
    answer = doctor(*edge_flags(verifier.address, "--num-draft-slots", "2048"))
    assert answer.exit_code == 0, answer.failed
    for name in (
        "target tokenizer",
        "draft model",
        "room for the draft model",
        "tokenizers agree",
        "port",
        "name",
        "tcp",
    ):
        assert answer.finding(name)["state"] == "ok", name
    for name in ("tls", "answer", "authentication", "tokenizer", "served model", "bandwidth", "draft step"):
        assert answer.finding(name)["state"] == "ok", name
    assert answer.finding("attention sdpa, float32")["state"] == "ok"
    assert "needs a CUDA device, not cpu" in answer.finding("attention triton, float32")["found"]
    assert answer.finding("round trip")["values"]["num_pings"] == 20
    tried = answer.finding("session with drafts")["values"]
    assert tried["tokens_per_verification"] >= 1 and tried["ms_per_token_with"] > 0
    expected = answer.finding("speed-up")
    assert expected["state"] in ("ok", "warn") and "85% of the target's tokens" in expected["found"]
    assert answer.finding("demo model")["state"] == "warn"
    assert "doctor-" in verifier.log(), "the tried sessions are named in the verifier's log"


def test_a_quick_look_measures_nothing(doctor: Doctor, verifier: Verifier) -> None:
    answer = doctor(*edge_flags(verifier.address, "--quick", "--max-seconds", "60"))
    assert answer.exit_code == 0, answer.failed
    for name in ("attention", "engine native", "bandwidth", "draft step", "session without drafts", "speed-up"):
        assert answer.finding(name)["state"] == "skipped"
    assert answer.finding("tokenizer")["state"] == "ok"


def test_an_edge_without_a_draft_model(doctor: Doctor, verifier: Verifier) -> None:
    answer = doctor(*edge_flags(verifier.address, "--draft-model", "none"))
    assert answer.exit_code == 0, answer.failed
    assert "looked up" in answer.finding("draft step")["found"]
    assert answer.finding("session with drafts")["values"]["tokens_per_verification"] >= 1
    assert answer.finding("speed-up")["state"] == "skipped"


def test_a_verifier_that_runs_already(doctor: Doctor, verifier: Verifier) -> None:
    flags = ["--port", verifier.address.rpartition(":")[2], "--metrics-port", verifier.metrics_url.split(":")[2][:5]]
    answer = doctor("verifier", *flags, "--num-threads", "1", "--device", "cpu")
    assert answer.exit_code == 0, answer.failed
    for name in ("port", "metrics_port"):
        assert answer.finding(name)["state"] == "warn" and "runs already" in answer.finding(name)["found"]
    assert answer.finding("room for the target model")["state"] == "skipped"
    assert answer.finding("target model")["values"]["engine"] in ("native", "lean")
    assert answer.finding("verifier step")["values"]["step_ms_1_rows"] > 0


def test_another_tokenizer(doctor: Doctor, verifier: Verifier, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for file in Path(resolve_model("demo", "target")).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    answer = doctor(*edge_flags(verifier.address, "--quick", "--target-model", str(folder), "--draft-model", "none"))
    assert answer.exit_code == 1 and answer.failed == ["tokenizer"]
    assert "set target_model to the verifier's, specedge-demo" in answer.finding("tokenizer")["change"]


def test_a_dead_address_and_a_taken_port(doctor: Doctor) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        taken = str(listener.getsockname()[1])
        address = f"{HOST}:{quiet_port()}"
        answer = doctor(*edge_flags(address, "--quick", "--port", taken))
    assert answer.exit_code == 1 and answer.failed == ["port", "tcp"]
    assert "taken by something else" in answer.finding("port")["found"]
    assert f"nothing listens at {address}" in answer.finding("tcp")["found"]
    for name in ("tls", "answer", "served model", "round trip"):
        assert answer.finding(name)["state"] == "skipped"


def test_a_name_that_nobody_knows(doctor: Doctor) -> None:
    flags = ["--allow-plaintext", "true", "--quick"]
    answer = doctor(*edge_flags("no-such-host.invalid:50051", *flags))
    assert answer.exit_code == 1 and answer.failed == ["name"]


def test_both_before_either_runs(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    port = quiet_port()
    monkeypatch.setenv("SPECEDGE_VERIFIER__PORT", str(port))
    monkeypatch.setenv("SPECEDGE_EDGE__VERIFIER_ADDRESS", f"{HOST}:{port}")
    monkeypatch.setenv("SPECEDGE_EDGE__PORT", str(quiet_port()))
    monkeypatch.setenv("SPECEDGE_VERIFIER__METRICS_PORT", "off")
    monkeypatch.setenv("SPECEDGE_EDGE__METRICS_PORT", "off")
    answer = doctor("--quick", "--num-threads", "1", "--max-seconds", "60")
    assert answer.exit_code == 0, answer.failed
    assert answer.finding("tcp")["state"] == "skipped" and "not running" in answer.finding("tcp")["found"]
    assert answer.finding("port", "verifier")["state"] == answer.finding("port", "edge")["state"] == "ok"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def private(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    own = authority.files("server", is_server=True)
    files = ["--tls-certificate-file", str(own.certificate), "--tls-key-file", str(own.key)]
    files += ["--tls-client-ca-file", str(authority.file)]
    verifier = Verifier(tmp_path_factory.mktemp("logs"), "--num-kv-blocks", "72", *files)
    alice = authority.files("probe")
    verifier.tls = ClientTls(authority.file, alice.certificate, alice.key)
    with running(verifier):
        yield verifier


def link_flags(authority: Authority, own: Paths) -> list[str]:
    files = ["--verifier-ca-file", str(authority.file), "--verifier-certificate-file", str(own.certificate)]
    return [*files, "--verifier-key-file", str(own.key), "--quick"]


def test_certificates_good_and_expired(doctor: Doctor, private: Verifier, authority: Authority) -> None:
    good = doctor(*edge_flags(private.address, *link_flags(authority, authority.files("alice"))))
    assert good.exit_code == 0, good.failed
    assert "mutual" in good.finding("tls")["found"] and good.finding("verifier certificate")["state"] == "ok"
    assert "alice.crt" in good.finding("authentication")["found"]

    old = authority.files("bob", days=1, days_old=2)
    expired = doctor(*edge_flags(private.address, *link_flags(authority, old)))
    assert expired.exit_code == 1
    failed = [check for check in expired.content["checks"] if check["state"] == "fail"]
    assert "verifier_certificate_file" in failed[0]["name"] and "expired on" in failed[0]["found"]
    assert expired.finding("tls")["state"] == "fail"


def test_plain_text_where_tls_is_spoken(doctor: Doctor, private: Verifier) -> None:
    answer = doctor(*edge_flags(private.address, "--quick"))
    assert answer.exit_code == 1 and "tls" in answer.failed
    assert "set verifier_ca_file" in answer.finding("tls")["change"]


def test_tokens_known_and_unknown(doctor: Doctor, tmp_path: Path) -> None:
    tenants, token = tmp_path / "tenants.yaml", tmp_path / "token"
    tenants.write_text(spell_tenant("alice", "te-specedge-alices"))
    token.write_text("te-specedge-alices")
    verifier = Verifier(tmp_path, "--num-kv-blocks", "72", "--tenants-file", str(tenants))
    with running(verifier):
        known = doctor(*edge_flags(verifier.address, "--quick", "--verifier-token-file", str(token)))
        assert known.exit_code == 0, known.failed
        assert known.finding("authentication")["found"] == "the verifier is shown a token"
        token.write_text("te-specedge-bobs")
        unknown = doctor(*edge_flags(verifier.address, "--quick", "--verifier-token-file", str(token)))
        assert unknown.exit_code == 1 and unknown.failed == ["authentication"]
        none = doctor(*edge_flags(verifier.address, "--quick"))
        assert none.failed == ["authentication"] and "shown nothing" in none.finding("authentication")["found"]
        missing = doctor(*edge_flags(verifier.address, "--quick", "--verifier-token-file", str(tmp_path / "no")))
        assert missing.failed == ["answer"] and "cannot be read" in missing.finding("answer")["found"]
