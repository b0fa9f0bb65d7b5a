"""Real processes of an earlier commit beside those of this one: verifiers are upgraded and rolled back under load."""

import asyncio
import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from failover_site import MOVED, Site
from processes import nothing_held, running

from specedge_cli.supervisor import specedge_command

ROOT = Path(__file__).resolve().parents[2]
EARLIER = os.environ.get("SPECEDGE_UPGRADE_FROM", "")
Command = Callable[[Sequence[str]], list[str]]


def command_of(source: Path, arguments: Sequence[str]) -> list[str]:
    """The command with the code of another folder."""
    return ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={source / 'services'}:{source}", *specedge_command(arguments)]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Command:
    assert EARLIER, "SPECEDGE_UPGRADE_FROM names no commit: run this with make test-upgrade"
    folder = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "archive", EARLIER], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    where = subprocess.run(
        [*command_of(folder, [])[:4], "-c", "import edge_agent; print(edge_agent.__file__)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(folder)), f"this would run {where}"
    return partial(command_of, folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("edge", ["earlier", "present"])
async def test_verifiers_are_upgraded_and_rolled_back_under_load(edge: str, earlier: Command, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "edge")]
    for folder in folders:
        folder.mkdir()
    site = Site.at(*folders)
    present: Command = partial(command_of, ROOT)
    site.first.command = site.second.command = earlier
    site.edge.command = earlier if edge == "earlier" else present
    with running(site.first, site.second, site.edge):
        await site.until_both_are_good()
        async with asyncio.timeout(500), site.under_load():
            for verifier, command in (
                (site.first, present),
                (site.second, present),
                (site.first, earlier),
                (site.second, earlier),
            ):
                await site.until_both_are_good()
                await site.until_it_has_sessions(verifier)
                verifier.signal(signal.SIGTERM)
                assert await asyncio.to_thread(verifier.exit_code) == 0
                verifier.command = command
                verifier.start()
                await asyncio.to_thread(verifier.wait_ready)
            await site.until_both_are_good()
        assert await site.edge.sample(MOVED) > 0, "answers must have moved"
        await nothing_held(site.first, site.second, site.edge)
    assert "Traceback" not in site.edge.log()
