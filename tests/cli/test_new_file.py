"""What a command writes beside OUT before it is whole, and what stays of it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcloop.cli.image_output import replacing
from p2pcloop.errors import StorageError

_PROGRAM = """
import sys
from pathlib import Path
from p2pcloop.cli.image_output import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def no_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vfat and NFS."""
    real = os.open

    def refuse(path: Path, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)


def has_nameless_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_nothing_stays_of_a_command_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    if not has_nameless_files(tmp_path):
        pytest.skip("this file system has no files without a name")
    out = tmp_path / "out.img"
    out.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        process.wait()
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"old"


def check_writes(folder: Path) -> None:
    out = folder / ("o" * 255)
    for content in (b"first", b"second"):
        with replacing(out) as file:
            file.write(content)
        assert list(folder.iterdir()) == [out]
        assert out.read_bytes() == content
    assert stat.S_IMODE(out.stat().st_mode) & 0o400
    with pytest.raises(ZeroDivisionError), replacing(out):
        raise ZeroDivisionError
    assert list(folder.iterdir()) == [out]
    assert out.read_bytes() == b"second"
    (folder / "folder").mkdir()
    with pytest.raises(StorageError), replacing(folder / "folder") as file:
        file.write(b"x")
    assert sorted(folder.iterdir()) == [folder / "folder", out]


def test_a_file_takes_its_place_whole(tmp_path: Path) -> None:
    check_writes(tmp_path)


@pytest.mark.usefixtures("no_nameless_files")
def test_a_file_takes_its_place_where_all_files_have_names(tmp_path: Path) -> None:
    check_writes(tmp_path)
