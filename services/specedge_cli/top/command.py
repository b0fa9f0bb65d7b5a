"""The command: reads every process once an interval, side by side, and shows what came of it."""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel

from specedge.errors import SettingsError
from specedge_cli.top.panels import failed_panel, panel_of, waiting_panel
from specedge_cli.top.scrape import Reading, ScrapeFailed, Window, scrape

DEFAULT_URLS = ("http://127.0.0.1:9464/metrics", "http://127.0.0.1:9465/metrics")
MAX_PROCESSES = 32


@dataclass(slots=True)
class Watched:
    """A process that is being watched: its last two readings, or why the last one failed."""

    url: str
    before: Reading | None = None
    after: Reading | None = None
    failure: str | None = None

    def read(self, timeout_s: float) -> None:
        """Takes a reading; one that fails is shown, and the next one begins anew."""
        try:
            reading = scrape(self.url, timeout_s)
        except ScrapeFailed as error:
            self.before = self.after = None
            self.failure = str(error)
        else:
            self.before, self.after, self.failure = self.after, reading, None

    def panel(self) -> Panel:
        """What is known at this moment."""
        if self.failure is not None:
            return failed_panel(self.url, self.failure)
        if self.before is None or self.after is None:
            return waiting_panel(self.url)
        return panel_of(self.url, Window(self.before, self.after))


def top(arguments: Sequence[str], console: Console | None = None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Runs until Ctrl-C, or shows one window and ends with `--once`: 1 if a process could not be read."""
    options = _parse(arguments)
    console = Console() if console is None else console
    watched = [Watched(url) for url in options.urls]
    with ThreadPoolExecutor(len(watched)) as pool:

        def read() -> Group:
            list(pool.map(lambda process: process.read(options.timeout), watched))
            return Group(*(process.panel() for process in watched))

        shown = read()
        if options.once:
            sleep(options.interval)
            console.print(read())
            return int(any(process.failure is not None for process in watched))
        with Live(shown, console=console, screen=True, auto_refresh=False) as live:
            while True:
                sleep(options.interval)
                live.update(read(), refresh=True)


def metrics_url(target: str) -> str:
    """The address of a process's metrics: HOST:PORT or a URL, with /metrics where no path is given.

    Raises:
        SettingsError: it is neither.
    """
    url = target if "://" in target else f"http://{target}"
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    if scheme not in ("http", "https") or not place or " " in url:
        raise SettingsError(f"{target!r} is neither HOST:PORT nor an http URL of a process's metrics")
    return f"{scheme}://{place}/{path}" if slash and path else f"{scheme}://{place}/metrics"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="specedge top",
        allow_abbrev=False,
        description="A live view of verifiers and edge agents, from their metrics. Ctrl-C ends it.",
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="HOST:PORT of a process's metrics (default: both ports of this machine)",
    )
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between readings (default 2)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for a reading (default 5)")
    parser.add_argument(
        "--once", action="store_true", help="show one interval and end; exit code 1 if one is out of reach"
    )
    options = parser.parse_args(arguments)
    if not 0.1 <= options.interval <= 3600:
        raise SettingsError(f"--interval {options.interval:g} is not between 0.1 and 3600 seconds")
    if not 0.1 <= options.timeout <= 60:
        raise SettingsError(f"--timeout {options.timeout:g} is not between 0.1 and 60 seconds")
    if len(options.targets) > MAX_PROCESSES:
        raise SettingsError(f"{len(options.targets)} targets are given, and {MAX_PROCESSES} are the most")
    options.urls = [metrics_url(target) for target in options.targets] or list(DEFAULT_URLS)
    return options
