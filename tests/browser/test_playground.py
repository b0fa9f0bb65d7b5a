"""The playground as its users have it: chats, colours, live view, Stop, errors, keys, widths and themes."""

import json
import re
import time
from typing import Any

import httpx
import pytest

pytest.importorskip("playwright", reason="the package playwright is not installed: make test-browser installs it")
from playwright.sync_api import Browser, Page, Route, expect

FOX = "Tell me a tale about a fox who wanted to see the sea."
CHAT = "**/v1/chat/completions"


def body_of(route: Route) -> dict[str, Any]:
    body: dict[str, Any] = route.request.post_data_json
    return body


def answer_with(page: Page, text: str, status: int = 200, kind: str = "text/event-stream") -> list[dict[str, Any]]:
    """Has a made-up answer to the next requests; returns the list that takes their bodies and headers."""
    seen: list[dict[str, Any]] = []

    def handle(route: Route) -> None:
        seen.append(body_of(route) | {"headers": route.request.headers})
        route.fulfill(status=status, content_type=kind, body=text)

    page.route(CHAT, handle)
    return seen


def held(url: str, name: str, state: str) -> float:
    text = httpx.get(url, trust_env=False).text
    match = re.search(rf'^{name}{{state="{state}"}} (\S+)$', text, re.MULTILINE)
    assert match, f"{url} has no {name}"
    return float(match[1])


def chunk(text: str, **more: Any) -> str:
    trace = {
        "tokens": [{"text": text, "source": "bonus", "depth": 1}],
        "round": {"num_nodes": 0, "num_accepted": 0, "queue_ms": 0.1, "step_ms": 1, "gap_ms": 2},
    }
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **more}
    return f"data: {json.dumps({'choices': [choice], 'specedge': trace})}\n\n"


def test_a_chat_streams_in_colours_and_the_live_view_follows(playground: Any, services: Any) -> None:
    page = playground.page
    expect(page.locator("#message")).to_be_focused()
    playground.set("seed", 11)
    playground.set("max-tokens", 60)
    playground.send(FOX)
    playground.wait_streaming()
    seen_while_streaming = page.locator("#rate").text_content()
    playground.wait_idle()
    tokens = page.locator(".token").count()
    assert page.locator(".token.draft").count() + page.locator(".token.bonus").count() == tokens
    assert page.locator(".token.draft").count() > 5, "drafts must have been accepted at this pace"
    assert seen_while_streaming != "\N{EN DASH}"
    body = {
        "messages": [{"role": "user", "content": FOX}],
        "seed": 11,
        "max_tokens": 60,
        "temperature": 0.7,
        "speculation": {"enabled": False},
    }
    plain = httpx.post(f"{services[1].url}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()
    assert playground.texts() == [plain["choices"][0]["message"]["content"]]
    assert plain["usage"]["completion_tokens"] == tokens
    expect(page.locator(".outcome")).to_contain_text(f"{tokens} tokens")
    assert float(page.locator("#per-round").text_content()) > 1
    assert int(page.locator("#rate").text_content()) > 0
    expect(page.locator("#trie-text")).to_contain_text(re.compile(r"\d+ drafted, \d+ verified, \d+ accepted"))
    assert page.locator("#trie circle").count() > 2
    step = page.get_by_role("row", name=re.compile("^Verify: step"))
    assert float(step.locator("td").first.text_content()) >= 30
    expect(page.locator("#status")).to_contain_text(playground.texts()[0][:40])
    assert playground.complaints == []


def test_pointing_at_a_token_tells_where_it_came_from_and_shows_its_round(playground: Any) -> None:
    page = playground.page
    playground.set("max-tokens", 40)
    playground.send(FOX)
    playground.wait_idle()
    page.locator(".token.draft").nth(3).hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text(re.compile(r"accepted draft, depth \d+\nround \d+: \d+ of \d+ verified draft nodes? "))
    before = page.locator("#trie").inner_html()
    page.locator(".token.bonus").last.hover()
    expect(tip).to_contain_text("bonus token")
    expect(page.locator("#timing .step rect.chosen")).to_have_count(1)
    assert page.locator("#trie").inner_html() != before
    page.locator("header h1").hover()
    expect(tip).to_be_hidden()


def test_stop_ends_the_answer_on_both_services_and_keeps_what_came(playground: Any, services: Any) -> None:
    page = playground.page
    playground.set("max-tokens", 900)
    playground.set("temperature", 2)  # hardly ever ends by itself
    playground.send("Once upon a time")
    playground.wait_streaming()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".outcome")).to_contain_text("stopped")
    assert len(playground.texts()[0]) > 10
    expect(page.locator("#status")).to_have_text("Stopped.")
    verifier, edge = services
    deadline = time.monotonic() + 20
    while held(verifier.metrics_url, "specedge_verifier_kv_blocks", "held") or held(
        edge.metrics_url, "specedge_edge_draft_kv_slots", "held"
    ):
        assert time.monotonic() < deadline, "a stopped answer is still held"
    assert playground.complaints == []


def test_a_conversation_goes_on_with_what_was_said(playground: Any) -> None:
    page = playground.page
    seen = answer_with(page, chunk("Well.") + chunk("", finish_reason="stop") + "data: [DONE]\n\n")
    playground.send("one")
    playground.wait_idle()
    playground.send("two")
    playground.wait_idle()
    said = [(message["role"], message["content"]) for message in seen[1]["messages"]]
    assert said == [("user", "one"), ("assistant", "Well."), ("user", "two")]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".answer")).to_have_count(0)
    playground.send("three")
    playground.wait_idle()
    assert [message["content"] for message in seen[2]["messages"]] == ["three"]


def test_comparing_shows_the_same_text_at_two_speeds(playground: Any) -> None:
    page = playground.page
    playground.set("max-tokens", 40)
    page.get_by_role("switch", name=re.compile("Compare")).check()
    playground.send(FOX)
    playground.wait_idle()
    first, second = playground.texts()
    assert first == second
    assert page.locator(".answer").last.locator(".token.draft").count() == 0
    expect(page.locator(".verdict")).to_contain_text(re.compile(r"^Same text: speculation took \d+ ms, plain"))


def test_a_refused_request_shows_why_and_can_be_tried_again(playground: Any) -> None:
    page = playground.page
    playground.set("max-tokens", 5000)
    playground.send(FOX)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("maximum context length is 1024 tokens")
    expect(page.locator(".answer")).to_have_count(0)
    playground.set("max-tokens", 5)
    alert.get_by_role("button", name="Try again").click()
    playground.wait_idle()
    expect(page.locator(".answer")).to_have_count(1)
    expect(alert).to_have_count(0)


def test_a_setting_out_of_range_is_pointed_at_and_nothing_is_sent(playground: Any) -> None:
    playground.set("max-tokens", 0)
    playground.send(FOX)
    expect(playground.page.locator("#max-tokens")).to_be_focused()
    expect(playground.page.locator(".said")).to_have_count(0)
    expect(playground.page.locator("#message")).to_have_value(FOX)


def test_whatever_breaks_is_shown(playground: Any) -> None:
    page = playground.page
    page.route(CHAT, lambda route: route.abort())
    playground.send("x")
    expect(page.get_by_role("alert").last).to_contain_text("The edge cannot be reached.")
    page.unroute(CHAT)
    failure = json.dumps({"error": {"message": "no verifier answered", "type": "server_error"}})
    answer_with(page, chunk("Once") + f"data: {failure}\n\ndata: [DONE]\n\n")
    playground.send("x")
    expect(page.get_by_role("alert").last).to_contain_text("no verifier answered")
    assert playground.texts() == ["Once"]
    page.unroute(CHAT)
    answer_with(page, chunk("Once"))
    playground.send("x")
    expect(page.get_by_role("alert").last).to_contain_text("The connection broke off")
    page.unroute(CHAT)
    answer_with(page, "<h1>Bad gateway</h1>", 502, "text/html")
    playground.send("x")
    expect(page.get_by_role("alert").last).to_contain_text("status 502")


def test_text_of_the_model_is_never_markup(playground: Any) -> None:
    page = playground.page
    nasty = "<img src=x onerror=alert(1)><b>bold</b>"
    answer_with(page, chunk(nasty) + "data: [DONE]\n\n")
    playground.send("<i>x</i>")
    playground.wait_idle()
    assert playground.texts() == [nasty]
    expect(page.locator(".said")).to_have_text("<i>x</i>")
    assert page.locator("main img, main b, main i").count() == 0


def test_a_key_is_asked_for_sent_and_not_stored(playground: Any) -> None:
    page = playground.page
    refusal = json.dumps({"error": {"message": "a key is needed", "type": "invalid_request_error"}})
    answer_with(page, refusal, 401, "application/json")
    playground.send("x")
    expect(page.get_by_role("alert")).to_contain_text("a key is needed")
    expect(page.locator("#key")).to_be_focused()
    page.unroute(CHAT)
    seen = answer_with(page, chunk("Yes") + "data: [DONE]\n\n")
    page.locator("#key").fill("secret-key")
    page.get_by_role("button", name="Try again").click()
    playground.wait_idle()
    assert seen[0]["headers"]["authorization"] == "Bearer secret-key"
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "secret-key" not in stored
    page.reload()
    expect(page.locator("#key")).to_have_value("")


def test_lookups_and_log_probabilities_are_shown_where_an_edge_tells_them(playground: Any) -> None:
    page = playground.page
    told = json.loads(chunk("fox")[6:])
    told["specedge"]["tokens"] = [
        {"text": "the", "source": "lookup", "depth": 1, "logprob": -0.25},
        {"text": " fox", "source": "bonus", "depth": 2},
    ]
    told["choices"][0]["logprobs"] = {"content": [{"logprob": -9}, {"logprob": -1.5}]}
    answer_with(page, f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n")
    playground.send("x")
    playground.wait_idle()
    expect(page.locator("#key-lookup")).to_be_visible()
    page.locator(".token.lookup").hover()
    expect(page.get_by_role("tooltip")).to_contain_text("accepted lookup, depth 1\nlog-probability -0.250 (77.9 %)")
    page.locator(".token.bonus").hover()
    expect(page.get_by_role("tooltip")).to_contain_text("log-probability -1.500 (22.3 %)")


def test_everything_works_by_keys_alone(playground: Any) -> None:
    page = playground.page
    keys = page.keyboard
    keys.type("Once upon")
    keys.press("Shift+Enter")
    keys.type("a time")
    expect(page.locator("#message")).to_have_value("Once upon\na time")
    keys.press("Enter")
    playground.wait_streaming()
    keys.press("Escape")
    expect(page.locator(".outcome")).to_contain_text("stopped")
    expect(page.locator("#message")).to_be_focused()
    keys.press("Shift+Tab")
    expect(page.locator(".text")).to_be_focused()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    expect(page.locator(".token").nth(1)).to_have_class(re.compile("chosen"))
    expect(page.get_by_role("tooltip")).to_contain_text("round")
    expect(page.locator("#status")).to_contain_text("depth")
    keys.press("End")
    expect(page.locator(".token").last).to_have_class(re.compile("chosen"))
    keys.press("Tab")
    expect(page.locator("#message")).to_be_focused()
    expect(page.get_by_role("tooltip")).to_be_hidden()


def test_every_control_is_reached_in_reading_order(playground: Any) -> None:
    page = playground.page
    expect(page.locator("#logprobs-row")).to_be_visible()
    page.locator("body").click(position={"x": 600, "y": 20})
    order = []
    while "send" not in order:
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert len(order) < 40
    named = [name for name in order if re.fullmatch(r"[a-z-]+", name)]
    assert named == [
        *("new-chat", "theme", "temperature", "seed", "new-seed", "max-tokens", "speculation", "compare"),
        *("logprobs", "key", "conversation", "message", "send"),
    ]


def test_themes_follow_the_system_until_one_is_chosen(playground: Any) -> None:
    page = playground.page

    def background() -> list[int]:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return [int(part) for part in re.findall(r"\d+", color)[:3]]

    page.emulate_media(color_scheme="dark")
    assert max(background()) < 60
    page.emulate_media(color_scheme="light")
    assert min(background()) > 200
    button = page.locator("#theme")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    assert max(background()) < 60
    page.reload()
    expect(button).to_have_text("Theme: dark")
    assert max(background()) < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_rule_of_accessibility_is_broken(browser: Browser, services: Any, scheme: Any, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(services[1].url)
    for panel in page.locator("details").all():
        panel.evaluate("panel => { panel.open = true; }")
    page.locator("#max-tokens").fill("30")
    page.locator("#compare").check()
    page.locator("#message").fill(FOX)
    page.locator("#message").press("Enter")
    expect(page.locator(".verdict")).to_be_visible(timeout=60_000)
    page.locator("#max-tokens").fill("5000")
    page.locator("#message").fill(FOX)
    page.locator("#message").press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    page.locator(".token").nth(2).hover()
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page must not scroll sideways"
    context.close()
