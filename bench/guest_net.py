"""TCP between a guest of `p2pcloop run --net user` and another machine, both directions.

That machine is a network namespace, since a guest reaches no address of this one. The same program
between the two namespaces, without a guest, shows what the machine itself can do at the moment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.links.network import Host, fast_pair, why_not
from bench.processes import Argument, run, serving
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, unpacked_kernel
from tools.tiny_image import build_tiny_image

BYTES = 200_000_000
TAKES, GIVES = 5001, 5002

_SERVER = """
import socket, sys, threading
address, size = sys.argv[1], int(sys.argv[2])
def take(connection):
    buffer = bytearray(1 << 18)
    while connection.recv_into(buffer):
        pass
    connection.sendall(b".")
def give(connection):
    connection.sendall(bytes(size))
def serve(port, answer):
    with socket.create_server((address, port)) as listener:
        while True:
            with listener.accept()[0] as connection:
                answer(connection)
for port, answer in ((int(sys.argv[3]), take), (int(sys.argv[4]), give)):
    threading.Thread(target=serve, args=(port, answer)).start()
"""


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    if why := why_not():
        raise BenchError(f"no network namespaces here: {why}")
    program, image = bench.work / "guest_net", bench.work / "net.img"
    source = Path(__file__).with_name("guest_net.c")
    run(["gcc", "-static", "-O2", "-Wall", "-o", program, source])
    build_tiny_image(image)
    for command in (f"write {program} /bin/guest_net", "sif /bin/guest_net mode 0100755"):
        run(["debugfs", "-w", "-R", command, image])
    with fast_pair() as (near, far), _served(bench, far):

        def guest(kernel: Path, net: str) -> Values:
            words: list[Argument] = [*near.inside, bench.p2pcloop, "run", image, "--net", net]
            words += ["--home", bench.work / "home", "--cpu", str(bench.cpu), "--kernel", kernel]
            return _both_ways([*words, "--", "sh", "-c"], "/bin/guest_net", far)

        kernels = {", kernel of the system": SYSTEM_KERNEL}
        if unpacked_kernel().exists():
            kernels = {"": unpacked_kernel(), **kernels}
        yield {
            **{
                f"{net}{name}": partial(guest, kernel, net)
                for net in ("user", "lan")
                for name, kernel in kernels.items()
            },
            "no guest": lambda: _both_ways([*near.inside, "sh", "-c"], program, far),
        }


@contextmanager
def _served(bench: Bench, host: Host) -> Iterator[None]:
    ports = [str(TAKES), str(GIVES)]
    argv = [*host.inside, sys.executable, "-c", _SERVER, host.address, str(BYTES), *ports]
    with serving(argv, lambda: host.listens(GIVES), bench.work / "server.log"):
        yield


def _both_ways(shell: Sequence[Argument], program: Argument, far: Host) -> Values:
    """Run a shell once, with one transfer in each direction."""
    lines = [
        f"{program} {way} {far.address} {port} {BYTES}"
        for way, port in (("send", TAKES), ("receive", GIVES))
    ]
    told = run([*shell, " && ".join(lines)]).split()
    if len(told) != len(lines):
        raise BenchError(f"the transfers told no two times: {told}")
    sent, received = (BYTES / 1e6 / float(seconds) for seconds in told)
    return {"sent": sent, "received": received}


def _row(title: str, value: str) -> Row:
    ours, base = ("p2pcloop, kernel of the system", value), ("no guest", value)
    return Row(title, ours, None, base, at_least=True)


GUEST_NET = Measure(
    "guest-net",
    "TCP from a guest to another machine and back, by --net user",
    {"sent": "MB/s", "received": "MB/s"},
    [_row("TCP, guest to outside", "sent"), _row("TCP, outside to guest", "received")],
    _contenders,
)
