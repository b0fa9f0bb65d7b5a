"""Settings: which source wins, and what a refusal says."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge_agent.settings import EdgeSettings, ProactiveSettings
from specedge.errors import SettingsError
from specedge.settings_sources import ProcessKind, load_settings
from specedge.settings_table import setting_table
from specedge_verifier.settings import VerifierSettings

VERIFIER = ProcessKind("verifier", VerifierSettings)
EDGE = ProcessKind("edge", EdgeSettings)
SOME_VERIFIERS = "HOST:PORT or unix:PATH, or up to 64 of them with commas, dns:NAME:PORT or file:PATH"
EXAMPLES = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SPECEDGE_"):
            monkeypatch.delenv(name)


def load_verifier(*flags: str) -> VerifierSettings:
    settings = load_settings(VERIFIER, [EDGE], flags)
    assert isinstance(settings, VerifierSettings)
    return settings


def load_edge(*flags: str) -> EdgeSettings:
    settings = load_settings(EDGE, [VERIFIER], flags)
    assert isinstance(settings, EdgeSettings)
    return settings


def refusal_of(kind: ProcessKind, *flags: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(kind, [VERIFIER, EDGE], flags)
    return str(caught.value)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_the_published_names_with_our_values() -> None:
    verifier, edge = load_verifier(), load_edge()
    assert (verifier.target_model, verifier.batch_type, verifier.system) == ("demo", "ready", "specedge")
    assert (verifier.port, verifier.host, verifier.max_len) == (50051, "127.0.0.1", None)
    assert (edge.draft_model, edge.proactive.type, edge.seed) == ("demo", "streamed", None)
    assert edge.verifier_address == "127.0.0.1:50051"


def test_each_source_wins_over_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "max_batch_size: 2\nmax_waiting: 2\nblock_size: 2\nmax_len: 2\n")
    monkeypatch.setenv("SPECEDGE_MAX_WAITING", "3")
    monkeypatch.setenv("SPECEDGE_BLOCK_SIZE", "3")
    monkeypatch.setenv("SPECEDGE_MAX_LEN", "3")
    monkeypatch.setenv("SPECEDGE_VERIFIER__BLOCK_SIZE", "4")
    monkeypatch.setenv("SPECEDGE_VERIFIER__MAX_LEN", "4")
    settings = load_verifier("--config", config, "--max-len", "5")
    assert (settings.max_batch_size, settings.max_waiting, settings.block_size, settings.max_len) == (2, 3, 4, 5)


def test_the_environment_can_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEDGE_CONFIG", write(tmp_path, "block_size: 8"))
    assert load_verifier().block_size == 8


@pytest.mark.parametrize("flag", ["--max-batch-size=7", "--max_batch_size=7"])
def test_flags_may_be_spelled_with_either_dash(flag: str) -> None:
    assert load_verifier(flag).max_batch_size == 7


def test_nested_settings_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "proactive:\n  type: off\n  max_budget: 9\n")
    assert load_edge("--config", config).proactive == ProactiveSettings(type="off", max_budget=9)
    monkeypatch.setenv("SPECEDGE_PROACTIVE__TYPE", "included")
    assert load_edge("--config", config).proactive == ProactiveSettings(type="included", max_budget=9)
    assert load_edge("--config", config, "--proactive.type", "excluded").proactive.type == "excluded"


def test_one_file_can_hold_both_processes(tmp_path: Path) -> None:
    config = write(tmp_path, "verifier:\n  port: 6000\nedge:\n  port: 7000\n")
    assert load_verifier("--config", config).port == 6000
    assert load_edge("--config", config).port == 7000


def test_words_for_not_set(tmp_path: Path) -> None:
    settings = load_verifier("--max-len", "auto", "--metrics-port", "off", "--num-kv-blocks", "auto")
    assert (settings.max_len, settings.metrics_port, settings.num_kv_blocks) == (None, None, None)
    assert load_edge("--draft-model", "none", "--seed", "random").draft_model is None
    assert load_verifier("--config", write(tmp_path, "metrics_port: off\nmax_len: null\n")).metrics_port is None


def test_empty_values_are_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEDGE_PORT", "")
    assert load_verifier("--config", write(tmp_path, "max_len:\nblock_size: 4")).port == 50051


def test_processes_may_share_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEDGE_MAX_BUDGET", "12")
    monkeypatch.setenv("SPECEDGE_MAX_BATCH_SIZE", "13")
    monkeypatch.setenv("SPECEDGE_EDGE__PORT", "14")
    assert load_edge().max_budget == 12 and load_edge().port == 14
    assert load_verifier().max_batch_size == 13 and load_verifier().port == 50051


@pytest.mark.parametrize(
    ("kind", "flag", "value", "allowed"),
    [
        (VERIFIER, "max-batch-size", "0", "an integer from 1 to 4096"),
        (VERIFIER, "max-batch-size", "1.5", "an integer from 1 to 4096"),
        (VERIFIER, "max-batch-size", "true", "an integer from 1 to 4096"),
        (VERIFIER, "batch-type", "statik", "one of ready, static, dynamic"),
        (VERIFIER, "device", "gpu", "auto, cpu, cuda or cuda:N"),
        (VERIFIER, "dtype", "int8", "one of auto, float32, bfloat16, float16"),
        (VERIFIER, "port", "70000", "an integer from 0 to 65535"),
        (VERIFIER, "kv-memory-fraction", "0", "a number above 0 to 0.95"),
        (VERIFIER, "drain-timeout-s", "inf", "a number from 0 to 86400"),
        (EDGE, "temperature", "nan", "a number from 0 to 2 or auto"),
        (EDGE, "temperature", "-1", "a number from 0 to 2 or auto"),
        (EDGE, "seed", "18446744073709551616", "an integer from 0 to 18446744073709551615 or random"),
        (EDGE, "proactive.type", "on", "one of streamed, included, excluded, off"),
        (EDGE, "verifier-address", "somewhere", SOME_VERIFIERS),
        (EDGE, "verifier-address", "a:1,a:1", SOME_VERIFIERS),
        (EDGE, "verifier-address", "dns:nowhere", SOME_VERIFIERS),
    ],
)
def test_a_bad_value_names_setting_value_origin_and_what_is_allowed(
    kind: ProcessKind, flag: str, value: str, allowed: str
) -> None:
    message = refusal_of(kind, f"--{flag}", value)
    name = flag.replace("-", "_")
    assert message == f"{name} = {value!r} (flag --{flag}): allowed is {allowed}"


def test_every_bad_value_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "block_size: x")
    monkeypatch.setenv("SPECEDGE_MAX_LEN", "0")
    lines = refusal_of(VERIFIER, "--config", config, "--port", "-1").splitlines()
    assert len(lines) == 3
    assert any("block_size = 'x'" in line and config in line for line in lines)
    assert any("max_len = '0' (environment variable SPECEDGE_MAX_LEN)" in line for line in lines)
    assert any("port = '-1' (flag --port)" in line for line in lines)


def test_unknown_names_are_refused_with_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--max-batchsize (value '4')" in (message := refusal_of(VERIFIER, "--max-batchsize", "4"))
    assert "did you mean --max-batch-size?" in message
    message = refusal_of(EDGE, "--config", write(tmp_path, "proactive: {typ: off}"))
    assert "proactive.typ = 'off'" in message and "did you mean proactive.type?" in message
    monkeypatch.setenv("SPECEDGE_MAX_BATCHSIZE", "4")
    message = refusal_of(VERIFIER)
    assert "SPECEDGE_MAX_BATCHSIZE = '4'" in message and "did you mean SPECEDGE_MAX_BATCH_SIZE?" in message


def test_a_flag_is_never_abbreviated() -> None:
    assert "--max-batch" in refusal_of(VERIFIER, "--max-batch", "4")


def test_a_flat_file_names_the_section_of_the_other_process(tmp_path: Path) -> None:
    message = refusal_of(VERIFIER, "--config", write(tmp_path, "max_new_tokens: 4"))
    assert "max_new_tokens = '4'" in message and "under 'edge:'" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "cannot be read"),
        ("port: 1\nport: 2", "key 'port' is given twice"),
        ("- port", "must hold keys and values"),
        ("verifier: {port: 1}\nport: 2", "stands beside the sections"),
        ("verifier: 5", "must be a section"),
        ("edge: {prot: 1}", "prot = '1'"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    config = write(tmp_path, text)
    message = refusal_of(VERIFIER, "--config", config)
    assert reason in message and config in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal_of(VERIFIER, "--config", str(tmp_path / "none.yaml"))


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert "max_tree_nodes (9) is above max_live_nodes (8)" in refusal_of(
        VERIFIER, "--max-live-nodes", "8", "--max-tree-nodes", "9"
    )
    assert "max_branch_width (9) is above max_budget (8)" in refusal_of(
        EDGE, "--max-budget", "8", "--max-branch-width", "9"
    )


def test_settings_are_frozen_and_their_constructor_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECEDGE_PORT", "9")
    settings = VerifierSettings()
    assert settings.port == 50051
    with pytest.raises(ValidationError):
        settings.port = 1
    with pytest.raises(ValidationError):
        EdgeSettings().proactive.type = "off"
    assert settings.replace(port=5).port == 5
    with pytest.raises(ValidationError):
        settings.replace(port=-5)


@pytest.mark.parametrize("kind", [VERIFIER, EDGE])
def test_help_explains_every_setting(kind: ProcessKind, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(kind, [], ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for entry in setting_table(kind.settings_class).values():
        assert entry.flag in text
        assert len(entry.description) > 10
        assert f"default {entry.default}]" in text


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_example_files_load(example: Path) -> None:
    assert load_verifier("--config", str(example)).target_model
    assert load_edge("--config", str(example)).draft_model


def test_the_example_for_the_embedded_pair_holds_the_defaults() -> None:
    config = str(EXAMPLES / "specedge.yaml")
    assert load_verifier("--config", config) == VerifierSettings()
    assert load_edge("--config", config) == EdgeSettings()
