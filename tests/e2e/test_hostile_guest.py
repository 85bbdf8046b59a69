"""A stranger's image whose init tries to get out: on both kernels, as root and as an ordinary user.

All that it tries is harmless: files are opened for writing and closed again. It runs in a network
namespace of its own, whose addresses stand for this machine's. What native code of a guest can try
beyond that, and without a boot, is in tests/guest/test_sandbox.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.errors import GuestError
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, unpacked_kernel
from tests.support.programs import Guest, Node, Nodes, tool
from tests.support.users import AS_ANOTHER_USER, NOBODY_ELSE, can_be_another_user
from tests.support.waiting import BOUND
from tools.tiny_image import build_tiny_image

pytestmark = pytest.mark.e2e

PORT = 7777
OWN = ("192.0.2.1", "198.51.100.7", "169.254.169.254")
"""Addresses of the namespace that the guest runs in; each has a listener on PORT."""

INIT = Path(__file__).with_name("hostile-init.sh")

IN_NAMESPACE = """
import os, socket, subprocess, sys
def ip(*words):
    subprocess.run(["ip", *words], check=True)
ip("link", "set", "lo", "up")
for address in sys.argv[2].split(","):
    ip("address", "add", f"{address}/24", "dev", "lo")
ip("route", "add", "default", "dev", "lo")
# What p2pcloop inherits it leaves open: the listener is there for as long as it runs.
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=50)
os.set_inheritable(listener.fileno(), True)
# There is something to reach.
socket.create_connection(("192.0.2.1", int(sys.argv[1]))).close()
os.execvp(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture(scope="module")
def hostile_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    image = folder / "hostile.img"
    build_tiny_image(image)
    for command in ("rm /sbin/init", f"write {INIT} /sbin/init", "sif /sbin/init mode 0100755"):
        tool("debugfs", "-w", "-R", command, image)
    return image


KERNELS = {"system": SYSTEM_KERNEL, "unpacked": unpacked_kernel()}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Path:
    path = KERNELS[request.param]
    if path != SYSTEM_KERNEL and not path.exists():
        pytest.skip("there is no newer kernel: tools/get-uml-kernel unpacks one")
    return path


@pytest.fixture(params=["as who runs the tests", "as an ordinary user"])
def node(request: pytest.FixtureRequest, nodes: Nodes, kernel: Path) -> Node:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    arguments = (str(PORT), ",".join(OWN))
    inside = ["unshare", "--net", *user, sys.executable, "-c", IN_NAMESPACE, *arguments]
    if "ordinary" in request.param:
        if why := can_be_another_user():
            pytest.skip(why)
        if kernel != SYSTEM_KERNEL and not reachable_by_all(kernel):
            pytest.skip(f"other users cannot reach {kernel}")
        inside += AS_ANOTHER_USER
        os.chown(nodes.directory, NOBODY_ELSE, NOBODY_ELSE)
    node = nodes.make(inside=inside)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        node.environment[name] = str(nodes.directory)
    return node


def reachable_by_all(path: Path) -> bool:
    real = path.resolve()
    return all(folder.stat().st_mode & 0o001 for folder in (*path.parents, *real.parents))


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """A socket of this machine that whatever the guest's management console receives must not
    reach."""
    with (
        tempfile.TemporaryDirectory(prefix="p2pt-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{folder}/socket")
        Path(folder).chmod(0o755)
        Path(folder, "socket").chmod(0o777)
        listener.setblocking(False)
        yield listener


def test_nothing_gets_out(
    node: Node, kernel: Path, hostile_image: Path, target: socket.socket
) -> None:
    folder = node.root.parent
    image, secret = folder / "hostile.img", folder / "secret"
    shutil.copyfile(hostile_image, image)
    secret.write_text("the host's secret")
    for path in (image, secret):
        path.chmod(0o644)
    words = {
        "SECRET": secret,
        "DAEMON": node.home.control_socket,
        "TARGET": target.getsockname(),
        "PORT": PORT,
        "OWN": ",".join(OWN),
    }
    append = " ".join(["quiet", *(f"{name}={value}" for name, value in words.items())])
    options = ("--append", append, "--net", "user", "--kernel", kernel)
    node.run("daemon", "start")
    assert node.home.control_socket.exists()
    with Guest(node, image, *options, installed=True) as guest:
        guest.expect("ATTACK done", 3 * BOUND)
        check_attacks(guest.printed, kernel)
        shown = guest.log.read_bytes()
        guest.process.send_signal(signal.SIGTERM)
        assert guest.wait(BOUND) == 137, "its management console is none"
    with pytest.raises(BlockingIOError):
        target.recv(4096)
    assert not re.search(rb"\x1b[\]P%]|\x1b\[21t|\x1b\[5i|\x05|\xc2\x9d|owned", shown)


def check_attacks(printed: str, kernel: Path) -> None:
    attacks = [line.split(None, 2)[1:] for line in re.findall("^ATTACK .*$", printed, re.MULTILINE)]
    by_kind: dict[str, list[str]] = {}
    for kind, *what in attacks:
        by_kind.setdefault(kind, []).extend(what)
    print(json.dumps(by_kind, indent=1))
    # What it got: out of the directory that it was given, into the sandbox's own root.
    assert "escaped" in by_kind
    own = {"dev", "lib", "lib64", "proc", "run", "tmp", "usr"}
    assert set(by_kind["root"]) <= own | set(kernel.parts[1:2])
    # A kernel that was unpacked for the user alone has its own place there, and nothing beside it.
    assert {Path(seen) for seen in by_kind.pop("sees", [])} <= set(kernel.parents)
    programs = {Path(program).name for program in by_kind["process"]}
    assert "linux.uml" in programs
    # A newer kernel has a program of its own for the guest's processes.
    assert all(re.match(r"bwrap$|linux\.uml|uml-userspace", program) for program in programs)
    assert int(by_kind["settings"][0]) > 100
    assert int(by_kind["files"][0]) < 64
    assert int(by_kind["bytes"][0]) <= 1 << 20
    assert by_kind["replaced"] == []
    # And nothing else: no file, no setting opened, nothing written, no host reached.
    got = {"escaped", "root", "process", "settings", "files", "bytes", "replaced", "done"}
    assert set(by_kind) == got


def test_where_no_sandbox_can_be_made_nothing_boots(nodes: Nodes, hostile_image: Path) -> None:
    """As in most containers: what failed, why, and what to do."""
    forbidden = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    node = nodes.make(inside=["unshare", "-Ur", "sh", "-c", forbidden, "sh"])
    for net in ("none", "user"):
        said = node.run("boot", hostile_image, "--net", net, code=GuestError.exit_code).err
        assert "the sandbox round the guest does not start: unshare" in said
        assert "hint: no user namespaces may be made here: `sysctl user.max_user_namesp" in said
