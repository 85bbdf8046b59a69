"""The forked block server: it keeps a guest's disk alive, and never runs its parent's clean-up."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import BusyError, GuestError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.making.local import inspect_file, open_local
from p2pcloop.store.home import Home
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import TEMPORARY, BlockServerSpec
from tests.support.images import ignore
from tests.support.nbd_client import WRITE, WRITE_ZEROES, NbdClient

SIZE = 1 << 20


@pytest.fixture
def spec(tmp_path: Path) -> BlockServerSpec:
    home = Home.at(tmp_path / "home")
    home.create()
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    return BlockServerSpec(
        home, inspect_file(image), overlay=tmp_path / "mine.delta", nbd=f"unix:{tmp_path}/s"
    )


def test_it_serves_until_it_is_told_to_stop_whatever_signals_come(spec: BlockServerSpec) -> None:
    async def main() -> dict[str, object]:
        await block.wait_ready()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(block._pid, number)
        with trio.move_on_after(0.2) as waiting:
            await block.finish()
        assert waiting.cancelled_caught, "a signal ended it"
        block.stop()
        return await block.finish()

    with BlockServerProcess(spec) as block:
        report = trio.run(main)
    assert report == {"chunks_touched": 0, "bytes_touched": 0, "waits": {"count": 0}}


def test_its_errors_are_raised_in_the_parent(spec: BlockServerSpec) -> None:
    assert isinstance(spec.overlay, Path)
    image = open_local(inspect_file(spec.overlay.parent / "image"), None, ignore)
    with (
        Overlay.create(spec.overlay, image_id=image.image_id, image_size=image.size),
        BlockServerProcess(spec) as block,
        pytest.raises(BusyError),
    ):
        trio.run(block.wait_ready)
    image.close()


def test_a_child_without_a_parent_ends_and_leaves_its_parents_things_alone(tmp_path: Path) -> None:
    """The parent is killed; what its `finally` would do is not the child's to do."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    program = f"""
import os, signal, trio
from pathlib import Path
from p2pcloop.making.local import inspect_file
from p2pcloop.store.home import Home
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec
folder = Path({str(tmp_path)!r})
home = Home.at(folder / "home")
home.create()
image = inspect_file(folder / "image")
spec = BlockServerSpec(home, image, overlay="temporary", nbd=f"unix:{{folder}}/s")
try:
    block = BlockServerProcess(spec)
    trio.run(block.wait_ready)
    os.kill(os.getpid(), signal.SIGKILL)
finally:
    (folder / "cleaned").touch()
"""
    # The child holds the pipe: its end is the child's end.
    ended = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b""
    assert not (tmp_path / "cleaned").exists()
    assert not (tmp_path / "s").exists(), "the child made its socket go"


@pytest.mark.parametrize("kept", [True, False])
def test_its_overlay_is_copied_as_it_is_now(
    spec: BlockServerSpec, tmp_path: Path, kept: bool
) -> None:
    """Also one that nobody has flushed, and one that has no name; into a folder of any name."""
    copies = tmp_path / "copies\nof \udcff"
    copies.mkdir()
    spec = replace(spec, overlay=spec.overlay if kept else TEMPORARY)
    copied: list[Path] = []
    noise = os.urandom(8192)

    async def main() -> None:
        await block.wait_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block.finish)
            client = NbdClient(await trio.open_unix_socket(tmp_path / "s"))
            await client.haggle()
            assert await client.call(WRITE, 4096, 8192, payload=noise) == (0, b"")
            copied.append(await block.copy_overlay(copies))
            assert await client.call(WRITE_ZEROES, 0, 4096) == (0, b"")
            copied.append(await block.copy_overlay(copies))
            with pytest.raises(GuestError, match="cannot be copied"):
                await block.copy_overlay(tmp_path / "nowhere")
            await client.stream.aclose()
            block.stop()

    with BlockServerProcess(spec) as block:
        trio.run(main)
    for path, states in zip(copied, [(0, 68, 68), (90, 68, 68)], strict=True):
        with Overlay.open(path, image_id=None, read_only=True) as overlay:
            assert tuple(overlay.state(block) for block in range(3)) == states
            content = bytearray(8192)
            overlay.read_into(4096, [memoryview(content)])
            assert content == noise
