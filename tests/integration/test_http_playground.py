"""The playground's page as it is served: whole, small, and allowed to load nothing from elsewhere."""

import base64
import hashlib
import re

import httpx
import pytest
from http_support import FakeService, serving

MAX_BYTES = 40_000
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture
async def answer() -> httpx.Response:
    async with serving(FakeService()) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        return await client.get("/")


def directives(answer: httpx.Response) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split("; ")
    return dict(part.split(" ", 1) for part in parts)


async def test_the_page_is_served_whole(answer: httpx.Response) -> None:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "/* style */" not in answer.text and "/* script */" not in answer.text
    assert answer.text.rstrip().endswith("</html>")
    assert len(answer.content) < MAX_BYTES


async def test_it_is_there_before_the_verifier_is_and_answers_head() -> None:
    service = FakeService()
    service.info, service.is_ready = None, False
    async with serving(service, model_name=None) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        head = await client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.get("/")).status_code == 200
        assert (await client.post("/")).status_code == 405


async def test_nothing_is_loaded_from_elsewhere(answer: httpx.Response) -> None:
    assert set(re.findall(r"https?://[^\s\"'`)]+", answer.text)) <= {NAMESPACE}
    assert not re.findall(r"\b(?:src|srcset|action)=|@import|url\(", answer.text.split("<script")[0])
    assert re.findall(r"<link[^>]* href=\"([^\"]{5})", answer.text) == ["data:"]


async def test_the_policy_allows_these_parts_and_nothing_else(answer: httpx.Response) -> None:
    policy = directives(answer)
    for name, pattern in {"script-src": r"<script[^>]*>(.*)</script>", "style-src": r"<style>(.*)</style>"}.items():
        (part,) = re.findall(pattern, answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert policy.pop(name) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


async def test_model_text_never_becomes_markup(answer: httpx.Response) -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", answer.text)
    assert not re.findall(r"\son[a-z]+=", answer.text), "inline handlers would need a weaker policy"
    assert not re.findall(r"\sstyle=", answer.text)
