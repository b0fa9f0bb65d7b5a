"""The tenants file, the command that writes it, and an edge's token."""

import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.settings import EdgeSettings
from edge_agent.verifier_token import VerifierToken
from specedge.errors import SettingsError
from specedge.hashed_secrets import spell_digest
from specedge.settings_sources import ProcessKind, load_settings
from specedge_cli.main import main
from specedge_verifier.authentication import caller_of
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.tenant_account import TenantAccount
from specedge_verifier.tenant_metrics import TenantMetrics
from specedge_verifier.tenants import Caller, Tenant, Tenants, new_token, read_tenants, spell_tenant

HASH = "c2021d83d44863dd7ca7a921c58ce30a01cf02d69c2f5ec750a8f380344f493e"
EDGE = ProcessKind("edge", EdgeSettings)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_tenant_is_found_by_its_tokens_and_certificates(tmp_path: Path) -> None:
    one, two, other = new_token(), new_token(), new_token()
    text = f"""
- name: "alice"
  tokens: [{spell_digest(one)}, {spell_digest(two).upper()}]
  certificates: [edge-1.example.org, "spiffe://example.org/edge"]
  weight: 2.5
  max_sessions: 4
  max_verified_tokens_per_second: 1000
  kv_share: 0.25
  max_prompt_tokens: 4096
- name: "bob"
  certificates:
  tokens:
    - {spell_digest(other)}
"""
    tenants = Tenants(write(tmp_path / "tenants.yaml", text))
    alice = tenants.accounts["alice"]
    assert alice.limits == Tenant("alice", 2.5, 4, 1000, 0.25, 4096)
    assert alice.max_blocks(99) == 24 and tenants.accounts["bob"].max_blocks(99) == 99
    assert tenants.accounts["bob"].limits == Tenant("bob")
    for token in (one, two):
        assert tenants.find(Caller(token.encode())) is alice
    assert tenants.find(Caller(certificate_names=("x.example.org", "spiffe://example.org/edge"))) is alice
    for wrong in (one[:-1], one + " ", spell_digest(one), "", "alice"):
        assert tenants.find(Caller(wrong.encode())) is None
    wrong_token = Caller(b"wrong", ("edge-1.example.org",))
    assert tenants.find(wrong_token) is None, "a token that is shown must be right, whatever the certificate"
    assert tenants.find(Caller(other.encode(), ("edge-1.example.org",))) is tenants.accounts["bob"]
    assert alice.salt != tenants.accounts["bob"].salt and len(alice.salt) == 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold a list of entries"),
        ("- alice", "entry 1: must have the field name, and tokens or certificates"),
        ("- name: alice", "entry 1 (alice): must have tokens or certificates"),
        ("- name: a b\n  certificates: [x]", "entry 1: name = 'a b' must be 1 to 64 letters"),
        ("- name: alice\n  tokens: te-specedge-secret", "(alice): tokens must be a list, each the 64 hexadecimal"),
        ("- name: alice\n  tokens: [te-specedge-secret]", "(alice): tokens must be a list, each the 64 hexadecimal"),
        ("- name: alice\n  certificates: [[x]]", "certificates must be a list, each a name in a certificate"),
        (f"- name: alice\n  tokens: [{HASH}]\n  kv_share: 0", "kv_share = '0' must be a number from 0.001 to 1"),
        (f"- name: alice\n  tokens: [{HASH}]\n  kv_share: nan", "kv_share = 'nan' must be a number"),
        (f"- name: alice\n  tokens: [{HASH}]\n  weight: much", "weight = 'much' must be a number from 0.001 to 1000"),
        (f"- name: alice\n  tokens: [{HASH}]\n  max_sessions: 1.5", "max_sessions = '1.5' must be an integer from 1"),
        (f"- name: alice\n  tokens: [{HASH}]\n  rate: 5", "there is no field 'rate'; known are name, tokens"),
        (
            f"- name: alice\n  tokens: [{HASH}]\n- name: bob\n  tokens: [{HASH.upper()}]",
            "entry 2 (bob): entry 1 (alice) has the same token",
        ),
        (
            "- name: alice\n  certificates: [x]\n- name: alice\n  certificates: [X]",
            "entry 2 (alice): entry 1 (alice) has the same name",
        ),
        ("- name: alice\n  certificates: [x]\n- name: bob\n  certificates: [x]", "has the same certificate"),
        ("- name: alice\n tokens: te-specedge-secret", "line 2: "),
    ],
)
def test_mistakes_name_entry_and_field_and_show_no_token(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "tenants.yaml", text)
    with pytest.raises(SettingsError) as caught:
        read_tenants(path)
    assert expected in str(caught.value) and f"{path} (tenants)" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_an_account_outlives_its_entry(tmp_path: Path) -> None:
    one, two = new_token(), new_token()
    path = write(tmp_path / "tenants.yaml", spell_tenant("alice", one, {"max_sessions": "3"}))
    tenants = Tenants(path, check_interval_s=0.0)
    alice = tenants.accounts["alice"]
    alice.usage.committed = 7
    write(path, spell_tenant("bob", two))
    assert await tenants.refresh() and not await tenants.refresh()
    assert tenants.find(Caller(one.encode())) is None and [*tenants.accounts] == ["alice", "bob"]
    write(path, spell_tenant("alice", two, {"max_sessions": "5"}))
    assert await tenants.refresh()
    assert tenants.find(Caller(two.encode())) is alice
    assert (alice.limits.max_sessions, alice.usage.committed) == (5, 7)


def test_the_command_prints_a_token_and_its_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--weight", "2", "--max-sessions", "8", "--kv-share", "0.5", "--max-prompt-tokens", "100"]
    assert main(["token", "alice", *limits, "--max-verified-tokens-per-second", "900"]) == 0
    printed = capsys.readouterr()
    token = printed.err.strip().rpartition(" ")[2]
    assert token.startswith("te-specedge-") and token not in printed.out
    tenants = Tenants(write(tmp_path / "tenants.yaml", printed.out))
    found = tenants.find(Caller(token.encode()))
    assert found is not None and found.limits == Tenant("alice", 2.0, 8, 900, 0.5, 100)
    assert main(["token", "a b", "--weight", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "name = 'a b' must be" in printed.err and "weight = '0' must be" in printed.err


class Context:
    """What gRPC tells of a call."""

    def __init__(self, metadata: tuple[tuple[str, str | bytes], ...], **names: bytes) -> None:
        self._metadata = metadata
        self._names = names

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return {f"x509_{kind}": [name] for kind, name in self._names.items()}


@pytest.mark.parametrize(
    ("context", "caller"),
    [
        (Context(()), Caller()),
        (Context((("authorization", "BEARER  abc "),)), Caller(b"abc")),
        (Context((("authorization", "Bearer one"), ("authorization", "Bearer two"))), Caller(b"one")),
        (Context((("authorization-bin", b"Bearer abc"), ("authorization", b"Bearer x"))), Caller()),
        (Context((), common_name=b"edge"), Caller(b"", ("edge",))),
        (Context((), common_name=b"edge", subject_alternative_name=b"one.example"), Caller(b"", ("one.example",))),
        (Context((), subject_alternative_name=b"\xff"), Caller(b"", ("\ufffd",))),
    ],
)
def test_what_a_call_shows(context: Context, caller: Caller) -> None:
    assert caller_of(context) == caller


def test_an_edges_token_is_read_again_when_its_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "token", "one\n")
    token = VerifierToken(path=path)
    assert token() == (("authorization", "Bearer one"),)
    write(path, "second")
    assert token() == (("authorization", "Bearer second"),)
    with caplog.at_level(logging.INFO):
        write(path, "")
        path.unlink()
        for _ in range(3):
            assert token() == (("authorization", "Bearer second"),)
    assert len(caplog.records) == 1 and "stays as it was" in caplog.text
    write(path, "third one")
    assert token() == (("authorization", "Bearer second"),), "two words are no token"
    assert "third" not in caplog.text
    assert VerifierToken()() == () and VerifierToken("abc")() == (("authorization", "Bearer abc"),)


@pytest.mark.parametrize("text", ["", "two words", "a" * 4097, "\u00e4"])
def test_a_token_that_cannot_be_sent_is_refused_at_start_and_not_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        VerifierToken(path=write(tmp_path / "token", text))
    assert "verifier_token" in str(caught.value)
    assert not text or text not in str(caught.value)


def test_the_token_in_settings_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEDGE_VERIFIER_TOKEN", "te-specedge-secret")
    settings = load_settings(EDGE, [], [])
    assert isinstance(settings, EdgeSettings) and settings.verifier_token is not None
    assert settings.verifier_token.get_secret_value() == "te-specedge-secret"
    assert "secret" not in repr(settings) and "secret" not in settings.model_dump_json()
    with pytest.raises(SettingsError, match="verifier_token and verifier_token_file are both set") as caught:
        load_settings(EDGE, [], ["--verifier-token-file", "x"])
    assert "te-specedge" not in str(caught.value)
    monkeypatch.setenv("SPECEDGE_VERIFIER_TOKEN", "off")
    settings = load_settings(EDGE, [], [])
    assert isinstance(settings, EdgeSettings) and settings.verifier_token is None


def test_metrics_have_every_tenant_and_what_it_used() -> None:
    alice, bob = TenantAccount(Tenant("alice")), TenantAccount(Tenant("bob"))
    alice.usage.committed, alice.num_running = 7, 2
    bob.usage.refused("queue")
    registry = CollectorRegistry()
    registry.register(TenantMetrics(lambda: (alice, bob), {"no_credentials": 3}))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"specedge_verifier_{name}", labels)

    assert value("tenant_tokens_total", tenant="alice", kind="committed") == 7
    assert value("tenant_tokens_total", tenant="bob", kind="drafted") == 0
    assert value("tenant_sessions", tenant="alice", state="running") == 2
    assert value("tenant_refused_sessions_total", tenant="bob", reason="queue") == 1
    assert value("tenant_refused_sessions_total", tenant="alice", reason="queue") is None
    assert value("unauthenticated_calls_total", reason="no_credentials") == 3


def test_the_tenants_file_in_settings() -> None:
    settings = load_settings(ProcessKind("verifier", VerifierSettings), [], ["--tenants-file", "tenants.yaml"])
    assert isinstance(settings, VerifierSettings) and settings.tenants_file == Path("tenants.yaml")
