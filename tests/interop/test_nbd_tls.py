"""NBD through TLS, with GnuTLS at the other end: libnbd's tools and qemu's."""

from __future__ import annotations

import os
import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd
from p2pcloopd.block.nbd_tls import NbdTls
from tests.support.certificates import Authority
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.nbd_client import READ, NbdClient
from tests.support.waiting import BOUND

pytestmark = pytest.mark.interop

SIZE = 6 << 20


class Served:
    """A device behind TLS, and directories of certificates for its clients."""

    def __init__(self, directory: Path, backend: MemoryBackend, port: int) -> None:
        self.directory = directory
        self.device = backend.device
        self.port = port

    def uri(self, certificates: str = "friend") -> str:
        where = self.directory / certificates
        return f"nbds://localhost:{self.port}/?tls-certificates={where}"

    async def run(self, *command: str | Path, good: bool = True) -> str:
        with trio.fail_after(BOUND):
            done = await trio.run_process(
                [str(word) for word in command],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert (done.returncode == 0) is good, (command, done.stdout, done.stderr)
        return (done.stdout + done.stderr).decode()


@asynccontextmanager
async def serving(tmp_path: Path, *, verify_peer: bool) -> AsyncIterator[Served]:
    authority, stranger = Authority("ours"), Authority("another")
    server = authority.write(tmp_path / "server", "server")
    authority.write(tmp_path / "friend", "client")
    stranger.write(tmp_path / "stranger", "client")
    # Believes the server, and has a certificate that the server does not believe.
    ca = (tmp_path / "friend" / "ca-cert.pem").read_bytes()
    (tmp_path / "stranger" / "ca-cert.pem").write_bytes(ca)
    backend = MemoryBackend(MemoryDevice(os.urandom(SIZE // 2) + bytes(SIZE // 2)))
    tls = NbdTls(server, verify_peer=verify_peer).context()
    async with open_nbd_listeners("127.0.0.1:0") as listeners, trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
            await serve_nbd(backend, listeners, names=("debian",), tls=tls, task_status=task_status)

        await nursery.start(serve)
        yield Served(tmp_path, backend, listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@pytest.fixture(params=[False, True], ids=["any client", "verified clients"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, verify_peer=request.param) as served:
        yield served


@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy(served: Served, connections: int) -> None:
    count = f"--connections={connections}"
    out = served.directory / "out"
    await served.run("nbdcopy", count, served.uri(), out)
    assert out.read_bytes() == served.device.content
    data = os.urandom(SIZE)
    out.write_bytes(data)
    await served.run("nbdcopy", count, "--flush", out, served.uri())
    assert served.device.durable == data


async def test_nbdinfo_tells_that_it_is_encrypted(served: Served) -> None:
    told = await served.run("nbdinfo", served.uri())
    assert "with TLS" in told
    assert await served.run("nbdinfo", "--size", served.uri()) == f"{SIZE}\n"


async def test_qemu_img(served: Served) -> None:
    credentials = f"tls-creds-x509,id=tls0,dir={served.directory / 'friend'},endpoint=client"
    image = (
        "driver=nbd,server.type=inet,server.host=localhost,"
        f"server.port={served.port},tls-creds=tls0,export=debian"
    )
    out = served.directory / "out"
    convert = ("qemu-img", "convert", "--object", credentials, "--image-opts", image)
    await served.run(*convert, "-O", "raw", out)
    assert out.read_bytes() == served.device.content


async def test_who_is_not_believed_gets_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, verify_peer=True) as served:
        for certificates in ("stranger", "server"):  # the latter has no client's key
            await served.run("nbdinfo", served.uri(certificates), good=False)
        assert await served.run("nbdinfo", "--size", served.uri()) == f"{SIZE}\n"


async def test_who_starts_no_tls_is_told_so(served: Served) -> None:
    told = await served.run("nbdinfo", f"nbd://localhost:{served.port}", good=False)
    assert "TLS" in told
    told = await served.run("qemu-img", "info", f"nbd:localhost:{served.port}", good=False)
    assert "TLS" in told
    assert await served.run("nbdinfo", "--size", served.uri()) == f"{SIZE}\n"


async def test_old_versions_of_tls_are_refused(served: Served) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(trio.BrokenResourceError):
        await _connect(served, context)


async def test_replies_of_many_requests_through_tls(tmp_path: Path) -> None:
    async with serving(tmp_path, verify_peer=False) as served:
        context = ssl.create_default_context(cafile=tmp_path / "friend" / "ca-cert.pem")
        client = await _connect(served, context)
        content = bytes(served.device.content)
        await client.stream.send_all(b"".join(client.pack(READ, n * 512, 512) for n in range(300)))
        for n in range(300):
            assert await client.reply() == (n, 0, content[n * 512 : n * 512 + 512])
        for offset, length in ((0, SIZE), (1, SIZE - 2)):
            assert (await client.call(READ, offset, length))[1] == content[offset:][:length]
        await trio.aclose_forcefully(client.stream)


async def test_a_client_needs_no_descriptor_to_start_tls(tmp_path: Path) -> None:
    """Where there was none left, the server ended."""
    async with serving(tmp_path, verify_peer=False) as served:
        context = ssl.create_default_context(cafile=tmp_path / "friend" / "ca-cert.pem")
        stream = await trio.open_tcp_stream("localhost", served.port)
        greeting = await stream.receive_some(18)  # it is served
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            client = await _start_tls(stream, context, greeting)
            assert (await client.call(READ, 0, 512))[1] == served.device.content[:512]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await trio.aclose_forcefully(client.stream)


async def _connect(served: Served, context: ssl.SSLContext) -> NbdClient:
    return await _start_tls(await trio.open_tcp_stream("localhost", served.port), context)


async def _start_tls(
    stream: trio.SocketStream, context: ssl.SSLContext, greeting: bytes = b""
) -> NbdClient:
    while len(greeting) < 18:
        greeting += await stream.receive_some(18 - len(greeting))
    await stream.send_all(bytes.fromhex("00000003") + b"IHAVEOPT" + bytes([0, 0, 0, 5]) + bytes(4))
    reply = b""
    while len(reply) < 20:
        reply += await stream.receive_some(20 - len(reply))
    assert reply[12:16] == bytes.fromhex("00000001")
    tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(stream)
        raise
    client = NbdClient(tls)
    await client.choose()
    return client
