"""Where an NBD server listens: parsing, stale sockets, and nothing that was not named."""

from __future__ import annotations

import contextlib
import gc
import socket
import stat
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import BusyError, UsageError
from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.nbd_client import READ, NbdClient


@pytest.mark.parametrize(
    "address",
    [
        "",
        "unix:",
        "unix:a\0b",
        "10809",
        ":10809",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1:65536",
        "127.0.0.1:100000",
        "127.0.0.1:nbd",
        "127.0.0.1: 1",
        "127.0.0.1:\N{ARABIC-INDIC DIGIT ONE}",
        "::1:10809",
        "[::1]",
        "[::1:10809",
        "[127.0.0.1]:10809",
        "[]:10809",
        "tcp://127.0.0.1:10809",
        "/tmp/socket",
    ],
)
async def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        async with open_nbd_listeners(address):
            pass
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("address", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("[::1]:0", socket.AF_INET6, "::1"),
    ],
)
async def test_tcp_listens_where_it_is_told_and_nowhere_else(
    address: str, family: socket.AddressFamily, host: str
) -> None:
    async with open_nbd_listeners(address) as (listener,):
        assert listener.socket.family == family
        assert listener.socket.getsockname()[0] == host


async def test_tcp_connections_send_at_once() -> None:
    backend = MemoryBackend(MemoryDevice(1 << 20))
    async with open_nbd_listeners("127.0.0.1:0") as listeners, trio.open_nursery() as nursery:
        await nursery.start(serve_nbd, backend, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            client = NbdClient(stream)
            await client.haggle()
            assert await client.call(READ, 0, 4096) == (0, bytes(4096))
            (server_side,) = sockets_connected_to(stream.socket.getsockname())
            assert server_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        nursery.cancel_scope.cancel()


def sockets_connected_to(address: object) -> list[socket.socket]:
    """This process's own sockets whose peer is `address`."""
    found = []
    for each in gc.get_objects():
        if isinstance(each, socket.socket) and each.fileno() >= 0:
            with contextlib.suppress(OSError):
                if each.getpeername() == address:
                    found.append(each)
    return found


async def test_busy_tcp_port() -> None:
    async with open_nbd_listeners("127.0.0.1:0") as (listener,):
        port = listener.socket.getsockname()[1]
        with pytest.raises(BusyError, match=f"127.0.0.1:{port}"):
            async with open_nbd_listeners(f"127.0.0.1:{port}"):
                pass


async def test_address_of_another_machine() -> None:
    with pytest.raises(UsageError, match="cannot listen on 192\\.0\\.2\\.1:0"):
        async with open_nbd_listeners("192.0.2.1:0"):
            pass


async def test_unix_socket_is_the_owners_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_nbd_listeners(f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def test_unix_socket_that_somebody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_nbd_listeners(f"unix:{path}") as (listener,):
        with pytest.raises(BusyError):
            async with open_nbd_listeners(f"unix:{path}"):
                pass
        async with await listener.accept():
            pass
        async with await trio.open_unix_socket(str(path)):
            pass
