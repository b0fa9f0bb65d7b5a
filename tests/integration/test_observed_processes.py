"""One request seen from outside: its trace through both processes, and its ids in the logs of both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Edge, Verifier, running
from trace_collector import TraceCollector, attributes_of, trace_collector

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SECRET = "the quick heron"
GENERATE = "specedge.verification.v1.VerificationService/Generate"
NUM_TOKENS = 24


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    with trace_collector() as collector:
        yield collector


@pytest.fixture
def services(collector: TraceCollector, tmp_path: Path) -> Iterator[tuple[Verifier, Edge]]:
    flags = ("--traces-endpoint", collector.url, "--log-level", "debug")
    verifier = Verifier(tmp_path, "--num-kv-blocks", "128", *flags)
    edge = Edge(tmp_path, "edge", verifier, *flags)
    with running(verifier, edge):
        yield verifier, edge


def records(service: Verifier | Edge, **wanted: str) -> list[dict[str, Any]]:
    """What a service has logged under these ids; every line is an object."""
    lines = [json.loads(line) for line in service.log().splitlines()]
    return [line for line in lines if wanted.items() <= line.items()]


async def test_one_trace_and_one_id_go_through_both_processes(
    services: tuple[Verifier, Edge], collector: TraceCollector
) -> None:
    verifier, edge = services
    async with edge.client() as client:
        answer = await client.chat.completions.create(
            model="specedge-demo",
            messages=[{"role": "user", "content": f"Tell me a tale about {SECRET}."}],
            seed=3,
            max_tokens=NUM_TOKENS,
            extra_headers={"x-request-id": "ask-1", "traceparent": f"00-{TRACE_ID}-{CALLER}-01"},
            extra_body={"ignore_eos": True},
        )
    (request,) = collector.wait("specedge-edge", "POST /v1/chat/completions", 1)
    (session,) = collector.wait("specedge-edge", "text_completion specedge-demo", 1)
    (served,) = collector.wait("specedge-verifier", GENERATE, 1)
    assert {each.trace_id.hex() for each in (request, session, served)} == {TRACE_ID}
    assert request.parent_span_id.hex() == CALLER
    assert (session.parent_span_id, served.parent_span_id) == (request.span_id, session.span_id)

    assert attributes_of(request)["http.response.status_code"] == 200
    told = attributes_of(session)
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (
        answer.usage.prompt_tokens,
        NUM_TOKENS,
    )
    assert [each.string_value for each in told["gen_ai.response.finish_reasons"].values] == ["length"]
    opened, *verifications = served.events
    assert (opened.name, {each.name for each in verifications}) == ("opened", {"verification"})
    assert sum(attributes_of(each)["tokens"] for each in verifications) == NUM_TOKENS
    assert attributes_of(served)["specedge.session.verifications"] == len(verifications)

    session_id = told["gen_ai.response.id"]
    (done,) = records(edge, request_id="ask-1", logger="edge_agent.http.request_log")
    assert (done["status"], done["completion_tokens"], done["trace_id"]) == (200, NUM_TOKENS, TRACE_ID)
    (ended,) = records(verifier, request_id="ask-1", session_id=session_id)
    assert (ended["finish_reason"], ended["tokens"], ended["trace_id"]) == ("length", NUM_TOKENS, TRACE_ID)

    text = answer.choices[0].message.content
    for place in (edge.log(), verifier.log(), str((request, session, served))):
        assert SECRET not in place and text[:20] not in place


async def test_requests_that_fail_are_marked_in_log_and_trace(
    services: tuple[Verifier, Edge], collector: TraceCollector
) -> None:
    _, edge = services
    async with edge.client() as client:
        with pytest.raises(Exception, match="max_tokens"):
            await client.completions.create(model="specedge-demo", prompt="a", max_tokens=-1)
    (request,) = collector.wait("specedge-edge", "POST /v1/completions", 1)
    assert attributes_of(request)["http.response.status_code"] == 400
    (done,) = records(edge, path="/v1/completions")
    assert (done["level"], done["status"]) == ("INFO", 400)
