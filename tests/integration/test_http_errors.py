"""Bad input and failures: every error has OpenAI's shape, names value and limit, and leaves other requests alone."""

import asyncio
import http.client
import json
from typing import Any

import httpx
import openai
import pytest
from http_support import INFO, FakeService, RunningApi, serving, tokenizer

from specedge.errors import CapacityExceeded, EngineDead, InvalidRequest, VerifierUnavailable

USER: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


async def post(api: RunningApi, path: str, body: Any = None, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=api.url) as client:
        return await client.post(path, **({"json": body} if body is not None else {}), **options)


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    (key,) = response.json()
    assert key == "error"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
CALLED = "messages[0].tool_calls[0].function"


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"temperature": -1}, "temperature", "-1.0"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"top_p": 1.5}, "top_p", "1.5"),
        ({"n": 9}, "n", "between 1 and 8"),
        ({"priority": 2**31}, "priority", "between -2147483647 and 2147483647"),
        ({"speculation": {"budget": 0}}, "speculation.budget", "between 1 and 4096"),
        ({"speculation": {"enabled": 1}}, "speculation.enabled", "valid boolean"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"messages": []}, "messages", "at least 1 message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot'"),
        ({"max_tokens": 2000}, "max_tokens", "1024"),
        ({"max_completion_tokens": 2000}, "max_completion_tokens", "2000 in max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"logit_bias": {"5000": 1}}, "logit_bias", "between 0 and 4095"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "between 0 and 4095"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "null"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "'web'"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "'f' like another's"),
        ({"tools": [TOOL] * 10_000}, "tools", "10000 tools; it may have at most 128"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "1 to 64 letters"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "'always'"),
        ({"tool_choice": "auto"}, "tool_choice", "no tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, CALLED + ".arguments", "not valid JSON"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object, json_schema or structural_tag"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
        ({"messages": [{"role": "user", "content": "word " * 1100}]}, "messages", "1024"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, "messages", "20000 characters; at most 16384"),
    ],
)
async def test_bad_values_are_named(fields: dict[str, Any], param: str, expected: str) -> None:
    async with serving(FakeService()) as api:
        for stream in (False, True):
            body = {"model": "demo", "messages": USER, "stream": stream, **fields}
            if "stream_options" in fields and stream:
                continue
            response = await post(api, CHAT, body)
            assert response.status_code == 400
            error = error_of(response)
            assert error["param"] == param
            assert error["type"] == "invalid_request_error"
            assert expected in error["message"]
        assert api.service.requests == []


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1, 4096], "token 1 of prompt is 4096; token ids must be between 0 and 4095"),
        ("", "prompt is empty"),
        ([5] * 1024, "1024"),
        ([5] * 1009, "1025 were asked for: 1009 in the prompt and 16 in max_tokens"),
    ],
)
async def test_bad_prompts_are_named(prompt: Any, expected: str) -> None:
    async with serving(FakeService()) as api:
        response = await post(api, TEXT, {"model": "demo", "prompt": prompt, "max_tokens": 16})
        assert response.status_code == 400
        assert expected in error_of(response)["message"]


async def test_context_errors_have_openais_code() -> None:
    async with serving(FakeService()) as api:
        error = error_of(await post(api, TEXT, {"model": "demo", "prompt": [5] * 2000}))
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 1024 tokens" in error["message"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model": "demo", "messages": [}', "line 1 column 32"),
        (b'{"model": "demo", "temperature": NaN}', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"", "not valid JSON"),
    ],
)
async def test_broken_json(content: bytes, expected: str) -> None:
    async with serving(FakeService()) as api:
        response = await post(api, CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert expected in error_of(response)["message"]


async def test_a_body_beyond_the_limit_is_refused_whether_announced_or_not() -> None:
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "x" * 20_000_000}]}).encode()

    async def in_chunks() -> Any:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    headers = {"content-type": "application/json"}
    async with serving(FakeService()) as api:
        announced = await post(api, CHAT, content=body, headers=headers)
        chunked = await post(api, CHAT, content=in_chunks(), headers=headers)
        for response, size in ((announced, str(len(body))), (chunked, "more than")):
            assert response.status_code == 413
            assert size in error_of(response)["message"]
            assert str(8 * 2**20) in error_of(response)["message"]
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.completions.create(model="demo", prompt="x" * 20_000_000)
            assert caught.value.status_code == 413


async def test_a_client_that_reads_only_after_it_has_sent_everything_gets_the_413() -> None:
    def send(address: tuple[str, int]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*address, timeout=20)
        connection.request("POST", CHAT, b"x" * 20_000_000, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    async with serving(FakeService()) as api:
        status, body = await asyncio.to_thread(send, api.address)
        assert status == 413
        assert b"20000000 bytes" in body


async def test_a_body_at_the_limit_is_read() -> None:
    body = json.dumps({"model": "demo", "prompt": "hi", "user": "u"}).encode()
    async with serving(FakeService(), max_body_bytes=len(body)) as api:
        headers = {"content-type": "application/json; charset=utf-8"}
        assert (await post(api, TEXT, content=body, headers=headers)).status_code == 200
        assert (await post(api, TEXT, content=body + b" ", headers=headers)).status_code == 413


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async with serving(FakeService(), body_timeout_s=0.1) as api:
        reader, writer = await asyncio.open_connection(*api.address)
        writer.write(f'POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{"model"'.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"0.1 seconds" in await reader.read(1000)
        writer.close()
        await writer.wait_closed()


async def test_other_content_types_are_refused() -> None:
    async with serving(FakeService()) as api:
        response = await post(api, CHAT, content=b"{}", headers={"content-type": "text/plain"})
        assert response.status_code == 415
        assert "text/plain" in error_of(response)["message"]


async def test_routing_errors_have_the_same_shape() -> None:
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url) as client:
        missing = await client.get("/v1/nothing")
        assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
        wrong_method = await client.get(CHAT)
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
        error_of(wrong_method)


async def test_unknown_models_are_told_what_exists() -> None:
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url) as client:
        for response in (
            await client.post(CHAT, json={"model": "gpt-9", "messages": USER}),
            await client.get("/v1/models/gpt-9"),
        ):
            assert response.status_code == 404
            assert error_of(response)["code"] == "model_not_found"
            assert "'gpt-9'" in error_of(response)["message"]
            assert "'demo'" in error_of(response)["message"]
        assert (await client.post(CHAT, json={"messages": USER})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "status", "retry_after"),
    [
        (InvalidRequest("no such thing", param="prompt"), openai.BadRequestError, 400, None),
        (CapacityExceeded("the queue of 8 is full", retry_after_s=2.2), openai.InternalServerError, 503, "3"),
        (VerifierUnavailable("no verifier at v:1", retry_after_s=0), openai.InternalServerError, 503, "1"),
        (EngineDead("the engine ended"), openai.InternalServerError, 503, "5"),
        (RuntimeError("secret"), openai.InternalServerError, 500, None),
    ],
)
async def test_failures_before_the_first_token_keep_their_status(
    stream: bool, error: Exception, kind: type[openai.APIStatusError], status: int, retry_after: str | None
) -> None:
    service = FakeService()
    async with (
        serving(service) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client,
    ):
        for failure in ("open_error", "error_after"):
            setattr(service, failure, error if failure == "open_error" else (0, error))
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(model="demo", messages=USER, stream=stream)
            assert caught.value.status_code == status
            assert caught.value.response.headers.get("retry-after") == retry_after
            message = error_of(caught.value.response)["message"]
            assert str(error) in message if status != 500 else "secret" not in message
            setattr(service, failure, None)
        assert (await client.chat.completions.create(model="demo", messages=USER)).choices
        assert service.num_open == 0


@pytest.mark.parametrize("error", [VerifierUnavailable("gone for good"), RuntimeError("secret")])
async def test_a_failure_inside_a_stream_is_an_error_event(error: Exception) -> None:
    service = FakeService("Once upon a time there was", burst_size=1)
    service.error_after = (3, error)
    async with (
        serving(service) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client,
    ):
        body = {"model": "demo", "messages": USER, "stream": True}
        lines = (await post(api, CHAT, body)).text.strip().split("\n\n")
        assert lines[-1] == "data: [DONE]"
        described = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert described["type"] == "server_error"
        assert "secret" not in described["message"]
        stream = await client.chat.completions.create(model="demo", messages=USER, stream=True)
        with pytest.raises(openai.APIError):
            [chunk async for chunk in stream]
        whole = await post(api, CHAT, {"model": "demo", "messages": USER})
        assert whole.status_code == (503 if isinstance(error, VerifierUnavailable) else 500)
        assert service.num_open == 0


async def test_one_choices_failure_ends_the_others() -> None:
    service = FakeService(is_endless=True)
    service.error_after = (5, VerifierUnavailable("gone"))
    async with serving(service) as api:
        response = await post(api, CHAT, {"model": "demo", "messages": USER, "n": 4})
        assert response.status_code == 503
        assert service.num_open == 0


async def test_the_official_client_tries_again_after_a_503() -> None:
    service = FakeService("fine")
    failures = iter([CapacityExceeded("full", retry_after_s=0.1), VerifierUnavailable("away", retry_after_s=0.1)])

    def reply(request: Any) -> str:
        error = next(failures, None)
        if error is not None:
            raise error
        return "fine"

    service.reply = reply
    async with (
        serving(service) as api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=2) as client,
    ):
        answer = await client.completions.create(model="demo", prompt="x")
    assert answer.choices[0].text == "fine"
    assert len(service.requests) == 3


async def test_nothing_is_served_before_the_verifier_has_answered() -> None:
    service = FakeService()
    service.info, service.is_ready = None, False
    async with serving(service, model_name=None) as api, httpx.AsyncClient(base_url=api.url) as client:
        refused = await client.post(CHAT, json={"model": "demo-target", "messages": USER})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert error_of(refused)["code"] == "verifier_unavailable"
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": []}
        service.info, service.is_ready = INFO, True
        assert (await client.post(CHAT, json={"model": "demo-target", "messages": USER})).status_code == 200


async def test_a_bad_request_leaves_its_neighbours_text_alone() -> None:
    service = FakeService("Once upon a time there was a rabbit", burst_size=1)
    service.gate = asyncio.Event()
    async with serving(service) as api:
        neighbour = asyncio.create_task(post(api, CHAT, {"model": "demo", "messages": USER}))
        for body in ({"model": "demo", "messages": USER, "top_p": 7}, {"model": "demo", "messages": [5]}, {}):
            assert (await post(api, CHAT, body)).status_code == 400
        service.gate.set()
        answer = (await neighbour).json()["choices"][0]["message"]["content"]
    assert answer == "Once upon a time there was a rabbit"
    assert tokenizer().decode(service.requests[0].prompt_ids).startswith("<|im_start|>user")
