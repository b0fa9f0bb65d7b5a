"""A real Chromium in front of a real edge and verifier; every test here is skipped where there is no Chromium."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from processes import Edge, Verifier, running

from specedge_bench.pace.pace import Pace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PACE = Pace("30ms", "5ms")
"""Steps as long as GPUs with large models take them: drafting pays, and an answer lasts long enough to be stopped."""
ANSWER_MS = 60_000


def find_chromium(playwright: Any) -> str | None:
    """Path of a Chromium: the system's, else playwright's own."""
    paths = (os.environ.get("CHROMIUM"), *map(shutil.which, NAMES), playwright.chromium.executable_path)
    return next((path for path in paths if path and Path(path).exists()), None)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    # Imported here, so that without the package tests can be skipped.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            pytest.skip(
                "no Chromium was found: install your system's (Debian: chromium), name one in CHROMIUM, "
                "or run `playwright install chromium`"
            )
        # Chromium's sandbox does not work for root, as in containers.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Verifier, Edge]]:
    folder = tmp_path_factory.mktemp("logs")
    verifier = Verifier(folder, "--num-kv-blocks", "256")
    edge = Edge(folder, "edge", verifier, "--num-draft-slots", "4096")
    for service in (verifier, edge):
        service.command = PACE.command
    with running(verifier, edge):
        yield verifier, edge


class Playground:
    """The page in one tab, with what the browser complained about."""

    def __init__(self, page: "Page", url: str) -> None:
        from playwright.sync_api import expect

        self._expect = expect
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.goto(url)
        self._expect(page.locator("#models")).to_contain_text("target specedge-demo")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def set(self, name: str, value: float) -> None:
        """Fills a field of the settings in."""
        self.page.locator(f"#{name}").fill(str(value))

    def send(self, text: str) -> None:
        """Types a message and sends it."""
        self.page.locator("#message").fill(text)
        self.page.locator("#message").press("Enter")

    def wait_streaming(self) -> None:
        """Waits until some of the last answer is there, and more to come."""
        self._expect(self.page.locator(".answer").last.locator(".token").nth(8)).to_be_attached(timeout=ANSWER_MS)
        self._expect(self.page.locator("#send")).to_have_text("Stop")

    def wait_idle(self) -> None:
        """Waits for the end of the answer."""
        self._expect(self.page.locator("#send")).to_have_text("Send", timeout=ANSWER_MS)

    def texts(self) -> list[str]:
        """The answers so far."""
        return [text or "" for text in self.page.locator(".answer .text").all_text_contents()]


@pytest.fixture
def playground(browser: "Browser", services: tuple[Verifier, Edge]) -> Iterator[Playground]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Playground(context.new_page(), services[1].url)
    context.close()
