"""The NBD server against clients that others wrote: libnbd's tools, qemu's and fio."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd
from tests.support.memory_device import MemoryBackend, MemoryDevice
from tests.support.waiting import BOUND

pytestmark = pytest.mark.interop

MIB = 1 << 20
SIZE = 16 * MIB


NAMES = ("debian", "@key/debian")


class Exported:
    """A served device and what foreign clients call it."""

    def __init__(self, backend: MemoryBackend, directory: Path, address: str, uri: str) -> None:
        self.backend = backend
        self.device = backend.device
        self.directory = directory
        self.address = address
        self.uri = uri

    async def run(self, *command: str | Path) -> str:
        """Run a client to its end; its standard output."""
        with trio.fail_after(BOUND):
            done = await trio.run_process(
                [str(word) for word in command],
                capture_stdout=True,
                capture_stderr=True,
                cwd=self.directory,
                check=False,
            )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.decode()


@pytest.fixture(params=["unix", "tcp"])
async def exported(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Exported]:
    """A device of random data; half of it comes only when it is asked for."""
    content = bytearray(SIZE)
    content[: SIZE // 2] = os.urandom(SIZE // 2)
    device = MemoryDevice(bytes(content))
    for start in range(0, SIZE, 128 << 10):
        device.withhold(start, 64 << 10)
    backend = MemoryBackend(device, automatic=True)
    address = f"unix:{tmp_path / 's'}" if request.param == "unix" else "127.0.0.1:0"
    async with open_nbd_listeners(address) as listeners, trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
            await serve_nbd(backend, listeners, names=NAMES, task_status=task_status)

        await nursery.start(serve)
        if request.param == "unix":
            uri = f"nbd+unix:///?socket={tmp_path / 's'}"
        else:
            port = listeners[0].socket.getsockname()[1]
            uri = f"nbd://127.0.0.1:{port}"
        yield Exported(backend, tmp_path, address, uri)
        nursery.cancel_scope.cancel()


async def test_nbdinfo(exported: Exported) -> None:
    told: dict[str, Any] = json.loads(await exported.run("nbdinfo", "--json", exported.uri))
    assert told["protocol"] == "newstyle-fixed"
    (export,) = told["exports"]
    assert export["export-name"] == ""
    assert export["export-size"] == SIZE
    assert not export["is_read_only"]
    for ability in ("cache", "df", "fast_zero", "fua", "flush", "trim", "zero", "multi_conn"):
        assert export[f"can_{ability}"]
    sizes = [export[f"block_size_{kind}"] for kind in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 * MIB]


async def test_nbdinfo_lists_the_export(exported: Exported) -> None:
    told = json.loads(await exported.run("nbdinfo", "--json", "--list", exported.uri))
    listed = [(each["export-name"], each["export-size"]) for each in told["exports"]]
    assert listed == [(name, SIZE) for name in ("", *NAMES)]


@pytest.mark.parametrize("name", NAMES)
async def test_nbdinfo_of_its_names(exported: Exported, name: str) -> None:
    base, _, socket = exported.uri.partition("?")
    uri = f"{base}{name}?{socket}" if socket else f"{base}/{name}"
    told = json.loads(await exported.run("nbdinfo", "--json", uri))
    assert told["exports"][0]["export-name"] == name
    assert told["exports"][0]["export-size"] == SIZE


async def test_nbdinfo_of_another_name(exported: Exported) -> None:
    uri = exported.uri.replace("///", "///other") if "unix" in exported.uri else f"{exported.uri}/x"
    failed = await trio.run_process(["nbdinfo", uri], check=False, capture_stderr=True)
    assert failed.returncode != 0
    assert b"server replied with error to opt_go request" in failed.stderr


async def test_maps_tell_holes_and_fetch_nothing(exported: Exported) -> None:
    half = SIZE // 2
    told = json.loads(await exported.run("nbdinfo", "--map", "--json", exported.uri))
    kinds = [(each["offset"], each["length"], each["description"]) for each in told]
    assert kinds == [(0, half, "data"), (half, half, "hole,zero")]
    told = json.loads(
        await exported.run("qemu-img", "map", "-f", "raw", "--output=json", exported.uri)
    )
    kinds = [(each["start"], each["length"], each["zero"]) for each in told]
    assert kinds == [(0, half, False), (half, half, True)]
    assert not exported.backend.asked


NBDSH = """
size, half = h.get_size(), h.get_size() // 2
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
seen = []
h.block_status(size, 0, lambda name, at, extents, error: seen.append((name, at, extents)))
assert seen == [("base:allocation", 0, [half, 0, half, 3])], seen
seen.clear()
h.block_status(half, half - 512, lambda *told: seen.append(told[2]), nbd.CMD_FLAG_REQ_ONE)
assert seen == [[512, 0]], seen
parts = []
def part(data, at, kind, error):
    parts.append((at, len(data), kind))
h.pread_structured(256 << 10, half - (128 << 10), part)
assert parts == [(half - (128 << 10), 128 << 10, nbd.READ_DATA), (half, 128 << 10, nbd.READ_HOLE)]
parts.clear()
h.pread_structured(256 << 10, half - (128 << 10), part, nbd.CMD_FLAG_DF)
assert parts == [(half - (128 << 10), 256 << 10, nbd.READ_DATA)], parts
h.cache(half, 0)
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(1 << 20, 1 << 20, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
except nbd.Error as err:
    assert err.errno == "ENOTSUP", err
else:
    raise AssertionError("fast zeros that keep their room")
h.zero(1 << 20, 2 << 20, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 3 << 20, nbd.CMD_FLAG_FUA)
h.set_strict_mode(0)
try:
    h.pread(1024, size - 512)
except nbd.Error as err:
    assert err.errno == "EINVAL", err
else:
    raise AssertionError("a read beyond the end")
assert h.pread(1 << 20, 0) + h.pread(2 << 20, 2 << 20) == bytes(3 << 20)
"""


async def test_nbdsh(exported: Exported) -> None:
    """Each command by itself, as libnbd's own shell sends it."""
    # Debian's interpreter, whose module it is; not one that stands before it in PATH.
    shell = ("/usr/bin/python3", "-m", "nbd", "--base-allocation")
    await exported.run(*shell, "-u", exported.uri, "-c", NBDSH)
    half = SIZE // 2
    fetched = {need.offset for asked in exported.backend.asked for need in asked.ranges}
    assert fetched >= set(range(0, half, 128 << 10))
    assert ("require", 0, 4 * MIB) in exported.device.calls
    assert ("write", 2 * MIB, MIB) in exported.device.calls
    assert exported.device.durable[:MIB] == bytes(MIB)


UNALIGNED = """
size = h.get_size()
h.set_strict_mode(0)
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
for offset, length in ((0, 1), (size - 1, 1), (511, 2), (4095, 8194), (1 << 20, 65537)):
    before = h.pread(length + 2, max(0, offset - 1)) if offset + length < size else None
    data = bytes(n % 255 + 1 for n in range(length))
    h.pwrite(data, offset)
    assert h.pread(length, offset) == data
    if before and offset:
        after = h.pread(length + 2, offset - 1)
        assert (after[0], after[-1]) == (before[0], before[-1])
h.zero(3, 4094)
assert h.pread(5, 4093)[1:4] == bytes(3)
h.trim(4097, 1)
h.cache(1, 8191)
"""


async def test_unaligned_requests(exported: Exported) -> None:
    shell = ("/usr/bin/python3", "-m", "nbd")
    await exported.run(*shell, "-u", exported.uri, "-c", UNALIGNED)
    told = await exported.run(
        *("qemu-io", "-f", "raw", exported.uri, "-c", "write -P 0xa5 4095 3"),
        *("-c", "read -P 0xa5 4095 3", "-c", "read -P 0xa5 4097 1", "-c", "flush"),
    )
    assert "failed" not in told
    assert exported.device.durable[4095:4098] == b"\xa5" * 3


@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_out(exported: Exported, connections: int) -> None:
    out = exported.directory / "out"
    await exported.run("nbdcopy", f"--connections={connections}", exported.uri, out)
    assert out.read_bytes() == exported.device.content
    assert exported.backend.asked


@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_in(exported: Exported, connections: int) -> None:
    source = exported.directory / "in"
    data = os.urandom(5 * MIB) + bytes(6 * MIB) + os.urandom(5 * MIB)
    source.write_bytes(data)
    count = f"--connections={connections}"
    await exported.run("nbdcopy", count, "--destination-is-zero", "--flush", source, exported.uri)
    written = exported.device.content
    assert written[: 5 * MIB] == data[: 5 * MIB]
    assert written[11 * MIB :] == data[11 * MIB :]
    await exported.run("nbdcopy", count, "--flush", source, exported.uri)
    assert exported.device.durable == data
    assert any(operation.startswith("write_zeroes") for operation, _, _ in exported.device.calls)


async def test_qemu_img(exported: Exported) -> None:
    before = bytes(exported.device.content)
    image = exported.directory / "image.qcow2"
    await exported.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", exported.uri, image)
    await exported.run("qemu-img", "compare", "-F", "raw", image, exported.uri)
    exported.device.content[:] = os.urandom(SIZE)
    await exported.run("qemu-img", "convert", "-n", "-O", "raw", image, exported.uri)
    assert exported.device.durable == before


async def test_qemu_io(exported: Exported) -> None:
    told = await exported.run(
        *("qemu-io", "-f", "raw", exported.uri),
        *("-c", "write -P 0xa5 512 8k"),
        *("-c", "write -f -P 0x5a 1M 64k"),
        *("-c", "write -z -u 1M 4k"),
        *("-c", "write -z 1056768 512"),
        *("-c", "discard 2M 1M"),
        *("-c", "read -P 0xa5 512 8k"),
        *("-c", "read -P 0 1M 4k"),
        *("-c", "read -P 0x5a 1057280 512"),
        *("-c", "read -P 0 2M 1M"),
        *("-c", "flush"),
    )
    assert "failed" not in told
    assert exported.device.durable[512:8704] == b"\xa5" * 8192
    assert exported.device.durable[MIB : MIB + 8704] == bytes(4096) + b"\x5a" * 4096 + bytes(512)


@pytest.mark.parametrize(
    ("pattern", "block", "depth"), [("randwrite", "4k", 32), ("write", "128k", 8)]
)
async def test_fio_verifies_what_it_wrote(
    exported: Exported, pattern: str, block: str, depth: int
) -> None:
    told = await exported.run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={exported.uri}", f"--rw={pattern}"),
        *(f"--bs={block}", f"--iodepth={depth}", f"--size={SIZE}", "--verify=crc32c"),
        *("--do_verify=1", "--verify_fatal=1", "--fsync=64", "--output-format=json"),
    )
    (job,) = json.loads(told[told.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == SIZE


async def test_fio_over_several_connections(exported: Exported) -> None:
    told = await exported.run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={exported.uri}", "--rw=randrw"),
        *("--bs=4k", "--iodepth=16", "--numjobs=4", "--size=4M", "--offset_increment=4M"),
        *("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--output-format=json"),
    )
    jobs = json.loads(told[told.index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * 4


async def test_nbd_client_lists(exported: Exported) -> None:
    if exported.address.startswith("unix"):
        command = ["nbd-client", "-l", "-unix", exported.address.removeprefix("unix:")]
    else:
        command = ["nbd-client", "-l", "127.0.0.1", exported.uri.rpartition(":")[2]]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
    assert b"Negotiation: .." in done.stdout
