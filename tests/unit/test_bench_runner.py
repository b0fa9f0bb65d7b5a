"""The bench's runner where it needs no process: loads, order of cells, systems, flags, chunks, counters, step logs."""

import asyncio
import itertools
import json
from pathlib import Path

import httpx
import pytest

from specedge.errors import SettingsError, SpecEdgeError
from specedge_bench import main as bench_main
from specedge_bench.arrivals import BadLoad, parse_load
from specedge_bench.client import AskSettings, ask
from specedge_bench.counters import count
from specedge_bench.measure import parse_steps
from specedge_bench.options import Options, parse_options
from specedge_bench.prompts.dataset import Prompt
from specedge_bench.scrape import growth, parse
from specedge_bench.systems import UnknownSystem, parse_system

PROMPTS = [Prompt(f"p{number}", "continuation", text=f"text {number}") for number in range(4)]
ASK = AskSettings(max_new_tokens=8, timeout_s=0.5)


def test_a_closed_loop_gives_every_user_equally_many_requests() -> None:
    load = parse_load("closed-3")

    assert (load.name, load.num_users, load.num_requests(4)) == ("closed-3", 3, 6)
    assert load.arrivals_s(6, seed=1) is None


def test_poisson_arrivals_have_the_rate_and_repeat_by_seed() -> None:
    load = parse_load("poisson-2.5")
    arrivals = load.arrivals_s(4000, seed=7)

    assert arrivals is not None and list(arrivals) == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(4000 / 2.5, rel=0.05)
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert sum(gap > 1 / 2.5 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.03)  # exp(-1)
    assert arrivals == load.arrivals_s(4000, seed=7) != load.arrivals_s(4000, seed=8)


def test_a_trace_has_plain_times_or_json_lines(tmp_path: Path) -> None:
    trace = tmp_path / "monday.txt"
    trace.write_text('0.5\n\n{"arrival_s": 0.25}\n3\n')
    load = parse_load(f"trace={trace}")

    assert load.name == "trace-monday"
    assert load.num_requests(10) == 3
    assert load.arrivals_s(2, seed=0) == (0.25, 0.5)


@pytest.mark.parametrize(
    "text", ["closed-0", "closed-x", "poisson-0", "poisson-nan", "poisson-inf", "open-3", "closed"]
)
def test_an_unknown_load_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadLoad, match=f"'{text}' is unknown; known are closed-USERS"):
        parse_load(text)


@pytest.mark.parametrize("line", ["soon", "-1", "NaN", '{"at": 3}', "[1]"])
def test_a_bad_trace_names_file_and_line(line: str, tmp_path: Path) -> None:
    trace = tmp_path / "bad.jsonl"
    trace.write_text(f"1\n{line}\n")
    with pytest.raises(BadLoad, match=r"bad\.jsonl, line 2"):
        parse_load(f"trace={trace}")


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadLoad, match=r"gone\.txt cannot be read: No such file"):
        parse_load(f"trace={tmp_path / 'gone.txt'}")


def test_a_system_is_settings_of_both_services() -> None:
    plain, beside, apart = (parse_system(name) for name in ("autoregressive", "server-only", "specedge:off:static"))

    assert plain.edge_arguments("d") == beside.edge_arguments("d") == ["--draft-model", "none", "--lookup", "off"]
    assert apart.edge_arguments("d") == ["--draft-model", "d", "--proactive.type", "off"]
    assert "--draft-model" not in plain.verifier_arguments("d") + apart.verifier_arguments("d")
    assert beside.verifier_arguments("d")[-2:] == ["--draft-model", "d"]
    assert apart.verifier_arguments("d") == ["--system", "specedge", "--batch-type", "static"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vllm", "known are autoregressive, server-only, specedge"),
        ("specedge:fast", "mode 'fast' is unknown; known are streamed"),
        ("specedge:off:slow", "batch type 'slow' is unknown; known are ready"),
        ("specedge:off:static:max_budget=4:1", "has 5 parts"),
        ("server-only:off", "only specedge has a mode"),
    ],
)
def test_an_unknown_system_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(UnknownSystem, match=reason):
        parse_system(text)


def options(*arguments: str) -> Options:
    return parse_options(["--out", "unused", *arguments])


def test_flags_keep_their_published_meaning() -> None:
    found = options("--req-offset", "2", "--sample-req-cnt", "3", "--max-request-num", "4", "--max-new-tokens", "5")

    assert (found.selection.req_offset, found.selection.sample_req_cnt, found.selection.max_request_num) == (2, 3, 4)
    assert found.ask.max_new_tokens == 5
    assert found.network_names == ("lan", "far")
    assert json.loads(json.dumps(found.given))["max_new_tokens"] == 5


def test_a_price_may_be_named_or_replaced() -> None:
    found = options("--price", "T4=0.0001", "--price", "RTX 4090=0.5", "--verifier-gpu", "T4")

    assert found.prices["T4"] == 0.0001
    assert found.prices["RTX 4090"] == 0.5
    assert found.prices["A100-40"] == 0.001125


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--verifier-gpu", "T4"], "--verifier-gpu 'T4' has no price; known are A100-40"),
        (["--price", "T4"], "must be NAME=DOLLARS_PER_S"),
        (["--price", "T4=-1"], "must be NAME=DOLLARS_PER_S"),
        (["--systems", "specedge,specedge"], "none twice"),
        (["--loads", ","], "at least one load"),
        (["--networks", "moon"], "unknown network profile 'moon'"),
        (["--pace", "30ms"], "must be TARGET,DRAFT"),
        (["--pace", "30ms,0ms"], "curve 0ms: a step has to take more than 0"),
        (["--pace", "30ms+xms,5ms"], r"curve 30ms\+xms: wanted is"),
        (["--modelled-pair"], "needs --pace"),
        (["--sample-req-cnt", "0"], "sample_req_cnt is 0"),
    ],
)
def test_a_wrong_flag_is_refused_by_name(arguments: list[str], reason: str) -> None:
    with pytest.raises(SpecEdgeError, match=reason):
        options(*arguments)


def test_settings_errors_are_usage_errors() -> None:
    with pytest.raises(SettingsError):
        options("--systems", "")


def test_no_verifier_at_the_address_is_said_at_once(tmp_path: Path) -> None:
    arguments = ["--verifier", "127.0.0.1:9", "--systems", "autoregressive", "--out", str(tmp_path / "run")]
    with pytest.raises(SpecEdgeError, match=r"no verifier at 127\.0\.0\.1:9: no answer"):
        bench_main.main(arguments)
    assert not (tmp_path / "run").exists()


def sse(*chunks: object) -> bytes:
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


def chunk(text: str, num_tokens: int, finish_reason: str | None = None) -> dict[str, object]:
    usage = {"prompt_tokens": 9, "completion_tokens": num_tokens, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"choices": [{"text": text, "finish_reason": finish_reason}], "usage": usage}


class Trickle(httpx.AsyncByteStream):
    """Sends its parts with a pause before each."""

    def __init__(self, parts: list[bytes], pause_s: float) -> None:
        self._parts = parts
        self._pause_s = pause_s

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        for part in self._parts:
            await asyncio.sleep(self._pause_s)
            yield part


def client_of(status: int, parts: list[bytes], pause_s: float = 0.02) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, stream=Trickle(parts, pause_s))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


async def test_chunks_that_are_read_at_once_are_one_burst() -> None:
    last = {"choices": [], "usage": chunk("", 4)["usage"]}
    parts = [sse(chunk("a", 1))[:-14], sse(chunk("b", 2), chunk("c", 4, "stop"), last)]
    async with client_of(200, parts) as client:
        answer = await ask(client, "http://edge", PROMPTS[0], 3, ASK)

    assert answer.error == ""
    assert [num_tokens for _, num_tokens in answer.bursts] == [1, 3]
    assert answer.sent_s < answer.bursts[0][0] < answer.bursts[1][0] <= answer.finished_s
    assert (answer.finish_reason, answer.num_prompt_tokens, answer.num_cached_tokens) == ("stop", 9, 4)
    assert answer.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"


@pytest.mark.parametrize(
    ("status", "parts", "pause_s", "reason"),
    [
        (503, [b"no room"], 0.0, "HTTP 503: no room"),
        (200, [sse(chunk("a", 1))], 0.0, "the stream ended before its answer"),
        (200, [sse({"error": {"message": "verifier lost"}})], 0.0, "broken off: verifier lost"),
        (200, [b'data: {"choices"\n\n'], 0.0, "an answer that cannot be read"),
        (200, [sse(chunk("a", 1))], 5.0, "no complete answer within 0.5 s"),
    ],
)
async def test_a_failed_request_says_why(status: int, parts: list[bytes], pause_s: float, reason: str) -> None:
    async with client_of(status, parts, pause_s) as client:
        answer = await ask(client, "http://edge", PROMPTS[0], 3, ASK)

    assert answer.error.startswith(reason)
    assert answer.digest == ""


def test_reasoning_is_a_variable_of_the_chat_template() -> None:
    chat = Prompt("c", "chat", (("user", "Hello"),))

    assert "chat_template_kwargs" not in ASK.body(chat, 0)
    thinking = AskSettings(max_new_tokens=8, reasoning=False)
    assert thinking.body(chat, 0)["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in thinking.body(PROMPTS[0], 0)


EDGE_METRICS = """\
specedge_edge_draft_step_seconds_sum 1.5
specedge_edge_draft_step_seconds_bucket{le="1.0"} 3
specedge_edge_draft_step_seconds_count 4
specedge_edge_draft_rows_total 60
specedge_edge_draft_session_steps_total 10
specedge_edge_draft_nodes_total 40
specedge_edge_wasted_draft_nodes_total{reason="rejected"} 20
specedge_edge_wasted_draft_nodes_total{reason="trimmed"} 5
specedge_edge_draft_guesses_total{outcome="hit"} 3
specedge_edge_draft_guesses_total{outcome="missed"} 1
specedge_edge_verifier_bytes_total{direction="up"} 100
specedge_edge_verifier_bytes_total{direction="down"} 50
specedge_edge_round_trip_seconds_sum 0.12
specedge_edge_round_trip_seconds_count 8
specedge_edge_inter_burst_seconds_count 10
specedge_edge_answers_total{finished_reason="length"} 2
vllm:spec_decode_num_drafts_total{model_name="m"} 8
vllm:spec_decode_num_draft_tokens_total{model_name="m"} 30
"""
VERIFIER_METRICS = """\
specedge_verifier_step_seconds_sum{phase="draft"} 0.75
specedge_verifier_step_seconds_sum{phase="schedule"} 0.25
specedge_verifier_step_seconds_sum{phase="forward"} 2.0
specedge_verifier_step_seconds_sum{phase="all"} 3.0
specedge_verifier_draft_step_seconds_sum 0.75
specedge_verifier_rows_total{kind="root"} 25
vllm:spec_decode_num_drafts_total{model_name="m"} 16
vllm:spec_decode_num_draft_tokens_total{model_name="m"} 60
vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 9
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} 6
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="1"} 3
vllm:num_preemptions_total{model_name="m"} 2
vllm:prefix_cache_queries_total{model_name="m"} 64
vllm:prefix_cache_hits_total{model_name="m"} 32
"""


def test_counters_of_edges_add_up_and_the_verifier_counts_its_own() -> None:
    found = count([parse(EDGE_METRICS)] * 2, parse(VERIFIER_METRICS), drafts_at_verifier=False)

    assert (found.verifier_busy_s, found.draft_busy_s) == (2.25, 3.0)
    assert (found.num_verifications, found.num_trees, found.num_nodes_verified, found.num_accepted) == (25, 16, 60, 9)
    assert found.accepted_by_depth == (6, 3)
    assert (found.drafted_nodes, found.wasted) == (80, {"rejected": 40, "trimmed": 10})
    assert (found.num_draft_steps, found.num_draft_rows, found.num_draft_session_steps) == (8, 120, 20)
    assert (found.guesses_hit, found.guesses_missed) == (6, 2)
    assert (found.bytes_up, found.bytes_down) == (200, 100)
    assert found.rtt_ms_measured == pytest.approx(15.0)
    assert (found.num_preemptions, found.prefix_queries, found.prefix_hits) == (2, 64, 32)


def test_a_drafter_beside_the_target_is_counted_at_the_verifier() -> None:
    found = count([parse(EDGE_METRICS)], parse(VERIFIER_METRICS), drafts_at_verifier=True)

    assert (found.verifier_busy_s, found.draft_busy_s) == (2.25, 0.75)
    assert found.drafted_nodes == 0


def test_without_the_verifiers_metrics_the_edges_tell_what_they_know() -> None:
    found = count([parse(EDGE_METRICS)], None, drafts_at_verifier=False)

    assert (found.verifier_busy_s, found.num_verifications, found.num_trees, found.num_nodes_verified) == (0, 12, 8, 30)


def test_growth_counts_new_samples_from_zero() -> None:
    assert growth({"a": 2.0}, {"a": 5.0, "b": 1.0}) == {"a": 3.0, "b": 1.0}


def test_a_step_log_gives_the_cells_own_steps() -> None:
    row = {
        **dict.fromkeys(("num_sessions", "num_prefill", "num_nodes", "num_accepted", "num_committed", "num_moved"), 1),
        **dict.fromkeys(("draft_ms", "schedule_ms", "forward_ms", "sample_ms", "settle_ms"), 0.5),
        "num_kv_tokens": 40,
        "accepted_depths": [2],
        "queue_ms": [0.25, 1.0],
    }
    early, own = ({"started_s": started_s, **row} for started_s in (99.0, 100.5))
    text = f"{json.dumps(early)}\n{json.dumps(own)}\n{json.dumps(own)[:20]}"

    (step,) = parse_steps(text, "cell", 2, 100.0)

    assert (step.cell, step.repetition, step.started_s) == ("cell", 2, 0.5)
    assert (step.accepted_depths, step.queue_ms, step.forward_ms) == ((2,), (0.25, 1.0), 0.5)
    assert step.num_kv_tokens == 40


def test_another_command_is_found_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecEdgeError, match="holds no run"):
        bench_main.main(["report", str(tmp_path)])
