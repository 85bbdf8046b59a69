"""What a guest has printed of late, and its log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcloop.errors import StorageError
from p2pcloop.store.guests import MAX_LOG
from p2pcloopd.guest.console.screen import KEPT, Log, Recent
from p2pcloopd.guest.control_socket import Output


async def test_a_follower_gets_all_that_comes_in_order() -> None:
    recent, got = Recent(), bytearray()

    async def follow() -> None:
        position = 0
        while len(got) < 30_000:
            position, data = await recent.read(position)
            assert position == len(got)
            got.extend(data)
            position += len(data)

    printed = os.urandom(30_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for at in range(0, len(printed), 7_000):
            recent.take(printed[at : at + 7_000])
            await trio.testing.wait_all_tasks_blocked()
    assert got == printed


async def test_a_follower_that_lags_goes_on_with_what_is_kept() -> None:
    recent = Recent()
    recent.take(b"x" * KEPT)
    recent.take(b"end")
    position, data = await recent.read(0)
    assert position == 3
    assert data.startswith(b"xxx")
    assert (await recent.read(KEPT))[1] == b"end"


def test_a_new_follower_begins_with_whole_lines() -> None:
    recent = Recent()
    assert recent.start() == 0
    recent.take(b"short\nprompt# ")
    assert recent.start() == 0
    recent.take(b"".join(b"line %d\n" % n for n in range(1000)) + b"prompt# ")
    start = recent.start()
    assert 0 < recent.position - start <= 2048

    async def first() -> bytes:
        return (await recent.read(start))[1]

    assert trio.run(first).startswith(b"line ")


def test_a_log_keeps_its_newest_bytes_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = Log(path)
    inode = path.stat().st_ino
    other = os.dup(log.fd)  # as the standard error of another process
    piece = bytes(range(256)) * 1024
    for _ in range(MAX_LOG // len(piece) + 1):
        log.write(piece)
    assert (tmp_path / "console.log.1").stat().st_size > MAX_LOG
    os.write(other, b"message")
    log.write(b"after")
    log.close()
    os.close(other)
    assert path.read_bytes() == b"messageafter"
    assert path.stat().st_ino == inode


def test_a_log_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        Log(tmp_path / "console.log")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_a_gap_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, recent = Log(tmp_path / "console.log"), Recent()
    output = Output(log, recent)
    output.take(b"before\n")
    with monkeypatch.context() as full:
        full.setattr("p2pcloopd.guest.console.screen.os.write", lambda _fd, data: len(data) // 2)
        output.take(b"not kept\n")
        output.take(b"nor this\n")
    output.take(b"after\n")
    log.close()
    text = (tmp_path / "console.log").read_text()
    assert text == "before\n\n[18 bytes are lost: the disk was full]\nafter\n"
    assert recent.position == len(b"before\nnot kept\nnor this\nafter\n")
    assert capsys.readouterr().err.count("cannot be written") == 1
