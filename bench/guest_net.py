"""TCP between a guest of `p2pcloop run` and another machine, both directions.

That machine is a network namespace, since a guest reaches no address of this one. The same program
between the two namespaces, without a guest, shows what the machine itself can do at the moment.

QEMU's user network is measured by itself: QEMU without a machine joins its `-netdev user` to a
socket, and a guest of the system's UML kernel is at the other end. So all contenders have the same
guest; one of QEMU's own would be emulated here, and slower.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.guests import environment
from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.links.network import Host, fast_pair, why_not
from bench.processes import Argument, run, serving
from p2pcloop.formats import newc
from p2pcloopd.guest.system.addresses import GUEST_INTERFACE, USER
from p2pcloopd.guest.system.kernel import (
    SYSTEM_KERNEL,
    find_busybox,
    find_kernel,
    unpacked_kernel,
)
from p2pcloopd.guest.system.kernel_words import kernel_words
from tools.tiny_image import build_tiny_image

BYTES = 200_000_000
TAKES, GIVES = 5001, 5002
QEMU = "QEMU's user network"

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
        qemu = partial(_qemu, bench, near, _first_root(bench, program, far))
        yield {
            **{
                f"{net}{name}": partial(guest, kernel, net)
                for net in ("user", "lan")
                for name, kernel in kernels.items()
            },
            QEMU: qemu,
            "no guest": lambda: _both_ways([*near.inside, "sh", "-c"], program, far),
        }


@contextmanager
def _served(bench: Bench, host: Host) -> Iterator[None]:
    ports = [str(TAKES), str(GIVES)]
    argv = [*host.inside, sys.executable, "-c", _SERVER, host.address, str(BYTES), *ports]
    with serving(argv, lambda: host.listens(GIVES), bench.work / "server.log"):
        yield


def _first_root(bench: Bench, program: Path, far: Host) -> Path:
    """An archive whose /init makes one transfer in each direction over QEMU's user network."""
    setup = [
        f"ip address add {USER.guest}/{USER.prefix_length} dev {GUEST_INTERFACE}",
        f"ip link set {GUEST_INTERFACE} up",
        f"ip route add default via {USER.gateway}",
    ]
    transfers = _transfers("/guest_net", far)
    init = ["#!/busybox sh", *(f"/busybox {line}" for line in setup), transfers]
    archive = newc.build_archive(
        [
            newc.directory("dev"),
            newc.char_device("dev/console", 5, 1),
            newc.regular_file("busybox", find_busybox().read_bytes(), 0o755),
            newc.regular_file("guest_net", program.read_bytes(), 0o755),
            newc.regular_file("init", "\n".join([*init, "/busybox poweroff -f\n"]).encode(), 0o755),
        ]
    )
    path = bench.work / "guest-net.cpio"
    path.write_bytes(archive)
    return path


def _qemu(bench: Bench, near: Host, first_root: Path) -> Values:
    """Run a guest whose card leads to QEMU's user network, which knows no other MTU than 1500."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kernel = find_kernel(SYSTEM_KERNEL)
    with ours, theirs:
        qemu = [*near.inside, "qemu-system-x86_64", "-machine", "none", "-nodefaults"]
        qemu += ["-display", "none", "-netdev", "user,id=u"]
        qemu += ["-netdev", f"dgram,id=d,local.type=fd,local.str={theirs.fileno()}"]
        for end in ("u", "d"):
            qemu += ["-netdev", f"hubport,id=h{end},hubid=0,netdev={end}"]
        card = f"{GUEST_INTERFACE}:transport=fd,fd={ours.fileno()},mtu=1500,vec=1"
        guest: list[Argument] = ["bwrap", "--unshare-pid", "--die-with-parent"]
        guest += ["--dev-bind", "/", "/", "taskset", "-c", str(bench.cpu), kernel.path]
        guest += ["mem=512M", f"uml_dir={bench.work}", f"initrd={first_root}", "noreboot", "quiet"]
        guest += ["con=null", "con0=null,fd:1", "console=tty0", card, *kernel_words(kernel)]
        with subprocess.Popen(qemu, pass_fds=[theirs.fileno()]) as slirp:
            try:
                done = subprocess.run(
                    guest, pass_fds=[ours.fileno()], env=environment(kernel), timeout=300,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False,
                )  # fmt: skip
            finally:
                slirp.kill()
    return _values(re.findall(r"^(\d+\.\d{4})\r?$", done.stdout, re.MULTILINE))


def _transfers(program: Argument, far: Host) -> str:
    """A line for a shell: one transfer in each direction."""
    ways = (("send", TAKES), ("receive", GIVES))
    return " && ".join(f"{program} {way} {far.address} {port} {BYTES}" for way, port in ways)


def _both_ways(shell: Sequence[Argument], program: Argument, far: Host) -> Values:
    """Run a shell once, with one transfer in each direction."""
    return _values(run([*shell, _transfers(program, far)]).split())


def _values(told: Sequence[str]) -> Values:
    if len(told) != 2:
        raise BenchError(f"the transfers told no two times: {told}")
    sent, received = (BYTES / 1e6 / float(seconds) for seconds in told)
    return {"sent": sent, "received": received}


def _rows(net: str) -> list[Row]:
    ours = f"{net}, kernel of the system"
    return [
        Row(f"TCP, {title}, --net {net}", (ours, value), 0.8, (QEMU, value), at_least=True)
        for title, value in (("guest to outside", "sent"), ("outside to guest", "received"))
    ]


GUEST_NET = Measure(
    "guest-net",
    "TCP from a guest to another machine and back, by --net user and --net lan",
    {"sent": "MB/s", "received": "MB/s"},
    [*_rows("user"), *_rows("lan")],
    _contenders,
)
