"""The disk's client of a machine, as far as it goes without a kernel's device."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from p2pcloop.protocol.nbd_export import Export
from p2pcloopd.block.nbd_server import serve_nbd
from tests.support.memory_device import MemoryBackend, MemoryDevice

SOURCE = Path(__file__).parents[2] / "daemon/p2pcloopd/guest/resources/nbd_root.c"

# Takes a connection in place of a dead one; where it is good, the kernel is asked, which is not
# there.
HARNESS = f'''
#define main nbd_root_main
#include "{SOURCE}"
#undef main
int main(int count, char **words) {{
    struct sockaddr_in node = {{.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}};
    struct disk first = {{strtoull(words[2], 0, 10), atoi(words[3])}};
    node.sin_port = htons(atoi(words[1]));
    try_again(-1, 0, &node, "", &first);
    puts(why);
    return count != 4;
}}
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nbd_root")
    (folder / "harness.c").write_text(HARNESS)
    program = folder / "harness"
    subprocess.run(["gcc", "-o", program, folder / "harness.c"], check=True)
    return program


@pytest.mark.parametrize(
    ("size", "flags", "why"),
    [
        (1 << 20, 0, "the kernel refuses the connection"),
        (1 << 20, 2, "can be written now: start the machine again"),
        (1 << 21, 0, "has another size now"),
    ],
)
async def test_a_disk_of_another_kind_is_not_taken(
    program: Path, size: int, flags: int, why: str
) -> None:
    backend = MemoryBackend(MemoryDevice(bytes(1 << 20)))
    assert Export(1 << 20, read_only=backend.device.read_only).read_only is False
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(serve_nbd, backend, [listener])
        port = listener.socket.getsockname()[1]
        done = await trio.run_process(
            [program, str(port), str(size), str(flags)], capture_stdout=True
        )
        nursery.cancel_scope.cancel()
    assert why in done.stdout.decode()
