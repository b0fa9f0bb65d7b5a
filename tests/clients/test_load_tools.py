"""Load tools: aiperf reports our speculation, and `/metrics` has what `vllm bench serve` reads from it."""

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest
from http_support import TARGET
from prometheus_client.parser import text_string_to_metric_families

NUM_REQUESTS = 6


def counters(url: str) -> dict[str, float]:
    """What `vllm bench serve` scrapes before and after a run."""
    text = httpx.get(f"{url}/metrics", trust_env=False).raise_for_status().text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vllm:spec_decode_num_") and "position" not in sample.labels
    }


def test_aiperf_reports_our_speculation(real_url: str, tmp_path: Path) -> None:
    aiperf = os.environ.get("SPECEDGE_AIPERF")
    if aiperf is None:
        pytest.skip("needs aiperf: make test-clients")
    before = counters(real_url)
    arguments = [
        "profile", "--model", "specedge-demo", "--url", real_url, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", str(TARGET), "--request-count", str(NUM_REQUESTS), "--concurrency", "2", "--isl", "32",
        "--osl", "24", "--ui", "none", "--artifact-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    # Told to be offline, it does not look for tokenizers in folders either.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [aiperf, *arguments], capture_output=True, text=True, timeout=150, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "run" / "logs" / "aiperf.log").read_text()
    assert "malformed" not in log, log
    report = json.loads((tmp_path / "run" / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == NUM_REQUESTS
    after = counters(real_url)
    assert after["vllm:spec_decode_num_drafts_total"] > before["vllm:spec_decode_num_drafts_total"]
    assert after["vllm:spec_decode_num_draft_tokens_total"] > before["vllm:spec_decode_num_draft_tokens_total"]
    assert "vllm:spec_decode_num_accepted_tokens_total" in after
