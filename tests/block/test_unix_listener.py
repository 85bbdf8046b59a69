"""Unix listeners: private, in place of dead sockets only, gone in the end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from p2pcloop.errors import BusyError, NotHereError, StorageError, UsageError
from p2pcloop.store.socket_path import socket_address
from p2pcloopd.unix_listener import bind_unix_listener, unix_listener


def test_it_is_the_owners_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_listener(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listener.getsockname() == os.fspath(path)
    assert listener.fileno() < 0
    assert not path.exists()


def test_a_file_system_without_sockets_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT in user space makes a file of another kind, and fails."""
    path = tmp_path / "s"

    class Refusing(socket.socket):
        def bind(self, _address: object) -> None:
            path.touch()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(StorageError) as caught:
        bind_unix_listener(path)
    assert "may know no sockets" in (caught.value.hint or "")
    assert not path.exists()


def test_one_that_was_removed_meanwhile(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "s"):
        (tmp_path / "s").unlink()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bind_unix_listener(path).close()
    with unix_listener(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_listener(path), pytest.raises(BusyError, match="another program listens"):
        bind_unix_listener(path)


def test_socket_in_use_whose_backlog_is_full(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(os.fspath(path))
        busy.listen(0)
        first.connect(os.fspath(path))
        with pytest.raises(BusyError):
            bind_unix_listener(path)


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link", "link to a socket"])
def test_nothing_but_a_dead_socket_is_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    target = tmp_path / "t"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == "link to a socket":
            bind_unix_listener(target).close()
    before = path.lstat()
    with pytest.raises(UsageError, match="is not a socket"):
        bind_unix_listener(path)
    assert path.lstat() == before


def test_a_socket_may_lie_as_deep_as_a_path_goes(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 200)
    folder.mkdir(parents=True)
    path = folder / "socket"
    bind_unix_listener(path).close()  # a dead one, which is replaced
    with unix_listener(path) as listener:
        with pytest.raises(BusyError, match="another program listens"):
            bind_unix_listener(path)
        with socket.socket(socket.AF_UNIX) as client, socket_address(path) as address:
            client.connect(address)
        listener.accept()[0].close()
    assert not path.exists()


def test_a_socket_whose_own_name_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the name of the socket"):
        bind_unix_listener(tmp_path / ("x" * 108))


def test_place_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NotHereError):
        bind_unix_listener(tmp_path / "none" / "s")


def test_folder_where_others_may_replace_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="others"):
        bind_unix_listener(tmp_path / "s")
    tmp_path.chmod(0o1777)
    bind_unix_listener(tmp_path / "s").close()


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EADDRINUSE, BusyError), (errno.EACCES, StorageError)]
)
def test_bind_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def refuse(_sock: socket.socket, _address: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(kind, match=f"{tmp_path / 's'}"):
        bind_unix_listener(tmp_path / "s")
