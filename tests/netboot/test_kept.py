"""The changes that a node keeps for each machine."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from shutil import copyfile

import pytest
import trio.testing

from p2pcloop.errors import StorageError, UsageError
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.local import inspect_file, open_local
from p2pcloop.store.home import Home
from p2pcloopd.block.opening import Disk
from p2pcloopd.block.source import LocalBackend
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.netboot.kept import RESERVED_SECONDS, KeptChanges, check_folder

MAC = "52:54:00:77:00:01"
FIRST, SECOND = "boot-1", "boot-2"


def kept(tmp_path: Path, content: bytes = bytes(8192)) -> KeptChanges:
    home = Home.at(tmp_path / "home")
    home.create()
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    file = inspect_file(path, raw=True)
    image = open_local(file, home.indexes, lambda _: None)
    folder = tmp_path / "kept"
    folder.mkdir(exist_ok=True)
    return KeptChanges(
        folder, BlockServerSpec(home, file), Disk(LocalBackend(ImageDevice(image)), None)
    )


async def write(changes: KeptChanges, text: bytes, boot: str = FIRST) -> None:
    device = (await changes.backend(MAC, boot)).device
    device.write(0, [memoryview(text.ljust(4096, b"."))])


async def read(changes: KeptChanges, boot: str = FIRST) -> bytes:
    content = memoryview(bytearray(4096))
    (await changes.backend(MAC, boot)).device.read_into(0, [content])
    return bytes(content).rstrip(b".")


async def test_changes_outlive_an_end_in_order(tmp_path: Path) -> None:
    before = kept(tmp_path)
    assert before.refusal(MAC, FIRST, again=False) is None
    await write(before, b"mine")
    await before.close_all()
    after = kept(tmp_path)
    # The boot that wrote last goes on; an older one, which knows less, does not.
    assert after.refusal(MAC, FIRST, again=True) is None
    assert "start the machine again" in str(after.refusal(MAC, SECOND, again=True))
    assert await read(after) == b"mine"
    await after.close_all()


async def test_after_a_kill_a_running_machine_is_refused_and_a_new_boot_is_not(
    tmp_path: Path,
) -> None:
    killed = kept(tmp_path)
    await write(killed, b"not synced")
    (await killed.backend(MAC, FIRST)).device.close_overlay()  # as the kernel closes its files
    after = kept(tmp_path)
    assert "start the machine again" in str(after.refusal(MAC, FIRST, again=True))
    assert after.refusal(MAC, SECOND, again=False) is None
    await write(after, b"anew", SECOND)
    assert after.refusal(MAC, SECOND, again=True) is None
    assert after.refusal(MAC, FIRST, again=True) is not None
    await after.close_all()


async def test_machines_have_changes_of_their_own(tmp_path: Path) -> None:
    changes = kept(tmp_path)
    await write(changes, b"mine")
    other = (await changes.backend("52:54:00:77:00:02", SECOND)).device
    content = memoryview(bytearray(4096))
    other.read_into(0, [content])
    assert bytes(content) == bytes(4096)
    await changes.close_all()
    assert sorted(path.name for path in changes.folder.glob("*.delta")) == [
        "52-54-00-77-00-01.delta",
        "52-54-00-77-00-02.delta",
    ]


async def test_changes_of_another_version_are_left_alone(tmp_path: Path) -> None:
    before = kept(tmp_path)
    await write(before, b"mine")
    await before.close_all()
    after = kept(tmp_path, b"another".ljust(8192, b"."))
    told = str(after.refusal(MAC, FIRST, again=False))
    assert "another version" in told and "move the file away" in told


@pytest.mark.parametrize("change", ["written", "replaced", "gone"])
async def test_an_overlay_that_is_not_the_same_is_no_disk_of_a_machine_that_waits(
    tmp_path: Path, change: str
) -> None:
    before = kept(tmp_path)
    await write(before, b"mine")
    await before.close_all()
    [overlay] = before.folder.glob("*.delta")
    if change == "written":  # as by `boot --overlay`
        facts = overlay.stat()
        os.utime(overlay, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    else:
        aside = overlay.rename(overlay.with_suffix(".aside"))
        if change == "replaced":
            copyfile(aside, overlay)
    after = kept(tmp_path)
    assert "moved or changed" in str(after.refusal(MAC, FIRST, again=True))
    if change != "gone":
        return
    # A new boot begins with what there is.
    assert "may come back" in str(after.refusal(MAC, SECOND, again=False))


async def test_for_a_while_a_disk_waits_for_the_boot_that_had_it(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    before = kept(tmp_path)
    await write(before, b"mine")
    await before.close_all()
    after = kept(tmp_path)
    assert "may come back" in str(after.refusal(MAC, SECOND, again=False))
    assert after.refusal(MAC, FIRST, again=True) is None
    mock_clock.jump(RESERVED_SECONDS)
    assert after.refusal(MAC, SECOND, again=False) is None
    await write(after, b"anew", SECOND)
    # Its connection breaks: the same once more.
    after.lost(MAC, SECOND)
    await after.close(MAC)
    assert "may come back" in str(after.refusal(MAC, FIRST, again=False))
    assert after.refusal(MAC, SECOND, again=True) is None
    mock_clock.jump(RESERVED_SECONDS)
    assert after.refusal(MAC, FIRST, again=False) is None


async def test_a_boot_that_cannot_be_named_gets_no_disk_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(tmp_path)
    await write(before, b"mine")
    await before.close_all()
    [named] = before.folder.glob("*.boot")
    said = named.read_text()
    after = kept(tmp_path)

    def full(path: Path, data: bytes) -> None:
        del path, data
        raise StorageError("cannot write", errno=errno.ENOSPC)

    with monkeypatch.context() as patched:
        patched.setattr("p2pcloopd.netboot.kept.replace_file", full)
        with pytest.raises(StorageError):
            await after.backend(MAC, FIRST)
    assert named.read_text() == said
    assert after.refusal(MAC, FIRST, again=True) is None
    assert await read(after) == b"mine"  # the overlay is not locked
    await after.close_all()


async def test_strangers_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = kept(tmp_path)
    await write(changes, b"mine")
    await changes.close_all()
    other = "52:54:00:77:00:02"
    assert changes.refusal(other, SECOND, again=False) is None
    with monkeypatch.context() as patched:
        patched.setattr("p2pcloopd.netboot.kept.MAX_OVERLAYS", 1)
        assert "keeps changes of 1 machines" in str(changes.refusal(other, SECOND, again=False))
        assert changes.refusal(MAC, FIRST, again=True) is None
    with monkeypatch.context() as patched:
        patched.setattr("p2pcloopd.netboot.kept.MIN_FREE", 1 << 60)
        assert "disk has" in str(changes.refusal(other, SECOND, again=False))
        assert changes.refusal(MAC, FIRST, again=True) is None


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        check_folder(tmp_path / "none")
