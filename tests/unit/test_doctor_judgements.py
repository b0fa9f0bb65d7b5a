"""What the doctor makes of files, models, the verifier and the settings."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from safetensors.torch import load_file, save_file
from tls_support import Authority

from edge_agent.committed_answer import Burst, BurstStats
from edge_agent.http.api_keys import spell_entry
from edge_agent.settings import EdgeSettings
from specedge import __version__
from specedge.model.embedded import resolve_model
from specedge.model.engines import Foreseen, foresee
from specedge.wire.messages import DRAFT_TRIES, GRAMMARS, LOGPROBS, TOKEN_MASKS, ServerInfo
from specedge_cli.doctor.access import check_api_keys, check_tenants
from specedge_cli.doctor.advice import advise_edge, advise_verifier, judge_budget, judge_sizes
from specedge_cli.doctor.check import Finding, State
from specedge_cli.doctor.facts import Facts
from specedge_cli.doctor.match import judge_capabilities, judge_fingerprint, judge_served
from specedge_cli.doctor.models import check_model_files, check_room, judge_room, judge_tokenizers
from specedge_cli.doctor.network import judge_bandwidth, judge_refusal, judge_round_trips
from specedge_cli.doctor.plan import names_own_verifier
from specedge_cli.doctor.self_tests import judge_against_transformers, judge_difference, judge_native
from specedge_cli.doctor.statistics import percentile
from specedge_cli.doctor.tls_files import check_tls_files, judge_remaining, named
from specedge_cli.doctor.trial import trial_of
from specedge_verifier.settings import VerifierSettings
from specedge_verifier.tenants import spell_tenant

INFO = ServerInfo(
    target_model="Qwen/Qwen3-14B",
    tokenizer_fingerprint="a" * 32,
    vocab_size=1000,
    max_len=4096,
    max_live_nodes=256,
    eos_ids=(1,),
    max_batch_size=64,
    server_version=__version__,
    capabilities=(DRAFT_TRIES, GRAMMARS, LOGPROBS, TOKEN_MASKS),
)
MIB = 2**20
MODEL = Foreseen("lean", "", 100 * MIB, 1024, 4096)


def states(findings: list[Finding]) -> list[State]:
    return [finding.state for finding in findings]


def named_findings(findings: object) -> dict[str, Finding]:
    assert isinstance(findings, list)
    return {finding.name: finding for finding in findings}


@pytest.mark.parametrize(("free", "state"), [(400 * MIB, "ok"), (105 * MIB, "warn"), (90 * MIB, "fail")])
def test_room_for_a_model(free: int, state: State) -> None:
    finding = judge_room("target", MODEL, 1024, "one session of max_len", 0, "cuda:0", free)
    assert finding.state == state
    assert finding.values["needed_bytes"] == 101 * MIB


def test_what_would_compute_the_embedded_models() -> None:
    folder = Path(resolve_model("demo", "target"))
    native = foresee("auto", folder, "cpu", "auto", "auto")
    lean = foresee("lean", folder, "cpu", "float16", "auto")
    other = foresee("transformers", folder, "cpu", "auto", "auto")
    assert [there.engine for there in (native, lean, other)] == ["native", "lean", "transformers"]
    assert native.kv_bytes == 2 * lean.kv_bytes and native.max_positions == 1024
    assert other.reason == "the setting engine names it"


def copy_of_target(folder: Path, change: Callable[[Path], None]) -> Path:
    folder.mkdir()
    for file in Path(resolve_model("demo", "target")).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: None, ""),
        (lambda folder: (folder / "config.json").unlink(), "config.json: is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not readable JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "is corrupt or cut off"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)
def test_model_files(tmp_path: Path, change: Callable[[Path], None], told: str) -> None:
    settings = EdgeSettings(target_model=str(copy_of_target(tmp_path / "model", change)))
    (finding,) = check_model_files(settings, "target", "model")
    assert finding.state == ("fail" if told else "ok")
    assert told in finding.found and bool(finding.change) == bool(told)


def test_models_that_are_elsewhere() -> None:
    (download,) = check_model_files(EdgeSettings(target_model="no-such/model-here"), "target", "tokenizer")
    (wrong,) = check_model_files(EdgeSettings(draft_model="/no/such/folder"), "draft", "model")
    assert (download.state, wrong.state) == ("warn", "fail")
    assert "downloads it" in download.change and "no such folder" in wrong.found


def test_models_of_the_hub_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    saved = tmp_path / "models--someone--pair"
    (saved / "refs").mkdir(parents=True)
    (saved / "refs" / "main").write_text("0" * 40)
    (saved / "snapshots").mkdir()
    folder = copy_of_target(saved / "snapshots" / ("0" * 40), lambda folder: None)
    settings = EdgeSettings(target_model="someone/pair")
    (whole,) = check_model_files(settings, "target", "model")
    (folder / "model.safetensors").unlink()
    (part,) = check_model_files(settings, "target", "model")
    assert (whole.state, part.state) == ("ok", "warn")
    assert "downloads the rest" in part.change and "has no weights" in part.found


def test_a_process_that_runs_has_its_memory() -> None:
    (free,) = check_room(EdgeSettings(), "draft", None, Facts())
    (taken,) = check_room(EdgeSettings(), "draft", None, Facts(runs_already=True))
    assert (free.state, taken.state) == ("ok", "skipped")


def test_a_checkpoint_in_another_number_format(tmp_path: Path) -> None:
    def to_bfloat16(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")

    folder = copy_of_target(tmp_path / "model", to_bfloat16)
    wide = foresee("lean", folder, "cpu", "float32", "auto")
    assert foresee("lean", folder, "cpu", "bfloat16", "auto").weight_bytes * 2 == wide.weight_bytes


def test_tokenizers() -> None:
    settings = EdgeSettings()
    assert judge_tokenizers("a", "a", settings).state == "ok"
    finding = judge_tokenizers("a", "b", settings)
    assert finding.state == "fail" and "own family" in finding.change
    assert judge_fingerprint("a" * 32, INFO, "x").state == "ok"
    finding = judge_fingerprint("b" * 32, INFO, "x")
    assert finding.state == "fail" and "set target_model to the verifier's, Qwen/Qwen3-14B" in finding.change


def test_what_a_verifier_serves() -> None:
    assert states(judge_served(INFO, "/models/Qwen3-14B")) == ["ok"]
    assert states(judge_served(replace(INFO, server_version="9"), "demo")) == ["warn", "warn"]
    assert states(judge_served(replace(INFO, target_model="specedge-demo"), "demo")) == ["ok"]
    assert states(judge_capabilities(INFO)) == ["ok"]
    (without,) = judge_capabilities(replace(INFO, capabilities=(DRAFT_TRIES,)))
    assert without.state == "warn" and "structured output" in without.change
    (plain,) = judge_capabilities(replace(INFO, capabilities=()))
    assert plain.state == "warn" and "takes no drafts" in plain.found


def test_round_trips_and_bandwidth() -> None:
    assert judge_round_trips([0.015] * 20).state == "ok"
    assert judge_round_trips([0.2] * 20).state == "warn"
    assert judge_round_trips([0.015] * 17 + [0.09] * 3).state == "warn"
    assert percentile(range(1, 21), 50) == 10 and percentile(range(1, 21), 95) == 19 and percentile([7.0], 95) == 7.0
    quick = judge_bandwidth([(2**16, 0.06), (2**18, 0.07), (2**20, 0.11)], 0.01)
    assert quick.state == "ok" and quick.values["up_bytes_per_s"] == round(2**20 / 0.1)
    assert judge_bandwidth([(2**16, 4.01)], 0.01).state == "warn"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "ask the verifier's operator"),
        (grpc.StatusCode.PERMISSION_DENIED, "ask the verifier's operator"),
        (grpc.StatusCode.UNIMPLEMENTED, "point verifier_address"),
    ],
)
def test_refusals(code: grpc.StatusCode, told: str) -> None:
    finding = judge_refusal(code, "who?", ["the certificate in a.crt"])
    assert finding.state == "fail" and told in finding.change and "a.crt" in finding.found


def test_self_tests() -> None:
    assert judge_difference("triton", 1e-3, 3e-2, "cuda:0", is_wanted=False).state == "ok"
    assert judge_difference("triton", 1.0, 3e-2, "cuda:0", is_wanted=False).state == "warn"
    assert judge_difference("triton", float("inf"), 3e-2, "cuda:0", is_wanted=True).state == "fail"
    assert judge_native(None, has_library=True, is_wanted=False).state == "ok"
    assert judge_native("logits differ", has_library=True, is_wanted=False).state == "warn"
    assert judge_native(None, has_library=False, is_wanted=True).state == "fail"
    assert judge_against_transformers("lean", 1e-5, 24, 1e-3).state == "ok"
    assert judge_against_transformers("lean", 0.5, 3, 1e-3).state == "fail"


def test_remaining_life() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    for days, state in ((100, "ok"), (3, "warn"), (-1, "fail")):
        assert judge_remaining("tls_key_file", "c", now + timedelta(days=days), now).state == state


def test_tls_files(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, old = authority.files("good", is_server=True), authority.files("old", days=10, days_old=11)
    good.key.chmod(0o600)
    fine = check_tls_files(named("tls_certificate_file", good.certificate), named("tls_key_file", good.key), None)
    assert states([*fine]) == ["ok", "ok"]
    good.key.chmod(0o644)
    loose = check_tls_files(named("tls_certificate_file", good.certificate), named("tls_key_file", good.key), None)
    assert states([*loose]) == ["ok", "ok", "warn"] and "chmod 600" in loose[-1].change
    (expired,) = check_tls_files(named("tls_certificate_file", old.certificate), named("tls_key_file", old.key), None)
    assert expired.state == "fail" and "expired on" in expired.found and "renew" in expired.change
    (missing,) = check_tls_files(None, None, named("verifier_ca_file", tmp_path / "none.crt"))
    assert missing.state == "fail" and "correct the path" in missing.change
    assert check_tls_files(None, None, None) == []


def test_api_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(spell_entry("alice", "sk-x"))
    path.chmod(0o600)
    assert states([*check_api_keys(path, True)]) == ["ok"]
    path.chmod(0o640)
    assert states([*check_api_keys(path, True)]) == ["ok", "warn"]
    path.write_text("[]")
    assert states([*check_api_keys(path, True)])[0] == "warn"
    path.write_text("- name: alice")
    assert states([*check_api_keys(path, True)]) == ["fail"]
    assert states([*check_api_keys(None, False)]) == ["ok"]
    assert states([*check_api_keys(None, True)]) == ["warn"]


def test_tenants(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(spell_tenant("alice", "te-x"))
    path.chmod(0o600)
    assert states([*check_tenants(path, True)]) == ["ok"]
    path.chmod(0o604)
    assert states([*check_tenants(path, True)]) == ["ok", "warn"]
    path.write_text("[]")
    assert states([*check_tenants(path, True)])[0] == "warn"
    path.write_text("- name: alice\n  weight: 0")
    assert states([*check_tenants(path, True)]) == ["fail"]
    assert states([*check_tenants(None, False)]) == ["ok"]
    assert states([*check_tenants(None, True)]) == ["warn"]


def test_advice_for_an_edge(tmp_path: Path) -> None:
    assert [*named_findings(advise_edge(EdgeSettings(), Facts()))] == ["demo model"]
    folder = str(copy_of_target(tmp_path / "model", lambda folder: None))
    own = EdgeSettings(target_model=folder, draft_model=folder)
    assert [*named_findings(advise_edge(own, Facts()))] == ["draft model size"]
    idle = EdgeSettings(target_model=folder, draft_model=None, lookup="off")
    assert [*named_findings(advise_edge(idle, Facts()))] == ["drafting"]
    fine = EdgeSettings(target_model=folder, draft_model=None)
    (nothing,) = advise_edge(fine, Facts())
    assert (nothing.name, nothing.state) == ("settings", "ok")
    loose = fine.replace(
        host="0.0.0.0",
        allow_plaintext_http=True,
        verifier_address="gpu:50051",
        allow_plaintext=True,
        public_metrics=True,
        metrics_host="0.0.0.0",
    )
    found = [finding.name for finding in advise_edge(loose, Facts())]
    assert found == ["plain text", "plain text", "metrics", "metrics"]
    small = Facts(info=replace(INFO, max_live_nodes=16))
    assert [*named_findings(advise_edge(fine, small))] == ["tree size"]


def test_advice_for_a_verifier(tmp_path: Path) -> None:
    folder = str(copy_of_target(tmp_path / "model", lambda folder: None))
    fine = VerifierSettings(target_model=folder, draft_model=None)
    (nothing,) = advise_verifier(fine)
    assert nothing.state == "ok"
    loose = fine.replace(host="0.0.0.0", allow_plaintext=True, max_num_batched_tokens=64, metrics_host="0.0.0.0")
    assert [finding.name for finding in advise_verifier(loose)] == ["plain text", "metrics", "step size"]


def test_trees_and_sizes() -> None:
    assert judge_sizes(100, 10) == []
    assert states(judge_sizes(100, 120)) == ["warn"]
    assert judge_budget(64, 32, 4, draft_step_s=0.005, cycle_s=0.03) == []
    (large,) = judge_budget(4096, 32, 4, draft_step_s=0.005, cycle_s=0.03)
    assert large.state == "warn" and large.change == "lower max_budget to 768"


@pytest.mark.parametrize(
    ("address", "host", "port", "is_own"),
    [
        ("127.0.0.1:50051", "0.0.0.0", 50051, True),
        ("localhost:50052", "127.0.0.1", 50051, False),
        ("gpu:50051", "127.0.0.1", 50051, False),
        ("unix:/run/v", "unix:/run/v", 50051, True),
    ],
)
def test_whether_the_verifier_is_our_own(address: str, host: str, port: int, is_own: bool) -> None:
    edge = EdgeSettings(verifier_address=address, allow_plaintext=True)
    assert names_own_verifier(edge, VerifierSettings(host=host, port=port, allow_plaintext=True)) is is_own


def test_the_numbers_of_a_session() -> None:
    def burst(num_tokens: int, step_us: int) -> Burst:
        return Burst((5,) * num_tokens, "", num_tokens - 1, BurstStats(queue_us=100, step_us=step_us))

    trial = trial_of([(0.5, burst(1, 400_000)), (0.6, burst(3, 30_000)), (0.7, burst(1, 20_000))])
    assert trial.first_token_s == 0.5 and trial.seconds_per_token == pytest.approx(0.05)
    assert trial.tokens_per_verification == 2.0 and trial.step_s == 0.02 and trial.num_tokens == 5
    only = trial_of([(0.5, burst(1, 400_000))])
    assert only.seconds_per_token == 0.5 and only.step_s == 0.4
