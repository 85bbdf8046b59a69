"""Bare machines by QEMU, which start from the network beside a DHCP server that others wrote."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.links.bare_machines import (
    BRIDGE,
    Firmware,
    Machine,
    dhcp_server,
    lan,
    switched_on,
    why_not,
)
from bench.links.network import Host
from p2pcloop.formats.overlay import Overlay
from p2pcloopd.guest.system.stock_kernel import unpacked_stock_kernel
from tests.e2e.conftest import DATA
from tests.support.programs import Node, Nodes, tool
from tests.support.waiting import BOUND, wait_until
from tools.console import Console
from tools.tiny_image import SHELL_PROMPT

LIMIT = 4 * BOUND
"""Seconds that a machine by TCG may take to its login, on a busy machine."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not unpacked_stock_kernel().exists(), reason="no kernel: tools/get-stock-kernel"
    ),
]


def needs(firmware: Firmware) -> pytest.MarkDecorator:
    reason = why_not(firmware)
    return pytest.mark.skipif(reason is not None, reason=f"no bare machines here: {reason}")


@pytest.fixture(scope="module")
def serial_image(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image with its login on whatever the kernel's console is."""
    path = tmp_path_factory.mktemp("serial") / "tiny.img"
    tool("cp", "--sparse=always", image, path)
    path.chmod(0o600)
    inittab = path.with_name("inittab")
    inittab.write_text("::sysinit:/etc/start\n::respawn:-/etc/console\n::shutdown:/bin/sync\n")
    for request in ("rm /etc/inittab", f"write {inittab} /etc/inittab"):
        tool("debugfs", "-w", "-R", request, path)
    return path


@pytest.fixture
def place() -> Iterator[tuple[Host, Host]]:
    with lan() as hosts:
        yield hosts


@contextmanager
def netbooting(node: Node, image: Path, *more: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`p2pcloop netboot`, once machines can start."""
    append = "console=ttyS0 cryptomgr.notests no_timer_check"
    with node.started("netboot", image, "--lan", BRIDGE, "--append", append, *more) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "machines that start" in line:
                break
        else:
            raise AssertionError(process.wait(BOUND))
        yield process


@contextmanager
def logged_in(machine: Machine, host: Host, work: Path) -> Iterator[Console]:
    with switched_on(machine, host, work) as console:
        try:
            yield console
        except BaseException as err:
            err.add_note(
                (work / f"machine-{machine.number}.log").read_text(errors="replace")[-3000:]
            )
            raise


def digest(console: Console, path: str) -> str:
    return console.run(f"md5sum {path}", LIMIT).split()[0]


@needs("bios")
def test_two_machines_boot_by_bios_and_outlive_the_node(
    nodes: Nodes, serial_image: Path, place: tuple[Host, Host], tmp_path: Path
) -> None:
    """The node is killed while they read. Their cards are of different kinds."""
    here, other = place
    node = nodes.make(inside=here.inside)
    machines = [Machine(1), Machine(2, card="e1000", memory=256)]
    wanted = hashlib.md5(DATA).hexdigest()
    with ExitStack() as stack:
        stack.enter_context(dhcp_server(other, tmp_path))
        with netbooting(node, serial_image) as serving:
            consoles = [
                stack.enter_context(logged_in(machine, here, tmp_path)) for machine in machines
            ]
            for console in consoles:
                console.expect(SHELL_PROMPT, LIMIT)
            told = (tmp_path / "leases").read_text()
            assert all(machine.mac in told for machine in machines)
            for number, console in enumerate(consoles):
                console.run(f"echo machine {number} >/root/mine", LIMIT)
            serving.send_signal(signal.SIGKILL)
            serving.wait(BOUND)
            left = subprocess.run(
                [*here.inside, "ss", "-Hlntup"], capture_output=True, text=True, check=True
            )
            wait_until(lambda: not _services(here), left.stdout)
            for console in consoles:
                console.send_line("md5sum /root/data; cat /root/mine")
        with netbooting(node, serial_image):
            for number, console in enumerate(consoles):
                console.expect(f"{wanted}  /root/data", LIMIT)
                console.expect(f"machine {number}", LIMIT)


def _services(host: Host) -> list[str]:
    """The ports of `netboot` that are open."""
    done = subprocess.run(
        [*host.inside, "ss", "-Hlntu"], capture_output=True, text=True, check=True
    )
    return re.findall(r":(67|69|4011|10809|10810)\b", done.stdout)


@needs("uefi")
def test_a_machine_boots_by_uefi_and_its_changes_are_kept(
    nodes: Nodes, serial_image: Path, place: tuple[Host, Host], tmp_path: Path
) -> None:
    """The node is the DHCP server, too, and is restarted in order."""
    here, _ = place
    node = nodes.make(inside=here.inside)
    machine = Machine(1, "uefi")
    kept = tmp_path / "kept"
    kept.mkdir()
    options = ("--keep", kept, "--dhcp", "server", "--range", "10.77.0.100,10.77.0.109")
    with ExitStack() as stack:
        with netbooting(node, serial_image, *options) as serving:
            console = stack.enter_context(logged_in(machine, here, tmp_path))
            console.expect(SHELL_PROMPT, LIMIT)
            console.run("head -c 300000 /dev/urandom >/root/mine", LIMIT)
            mine = digest(console, "/root/mine")
            # Not synced: what the node was told is in its memory alone.
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(BOUND) == 0
        console.send_line(f"md5sum /root/data; sync; echo {mine}-on-the-disk | tr - _")
        with netbooting(node, serial_image, *options) as serving:
            console.expect(hashlib.md5(DATA).hexdigest(), LIMIT)
            console.expect(f"{mine}_on_the_disk", LIMIT)
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(BOUND) == 0
    [overlay] = kept.glob("*.delta")
    assert overlay.name == f"{machine.mac.replace(':', '-')}.delta"
    assert " whole " in overlay.with_suffix(".boot").read_text()
    assert Overlay.inspect(overlay).data_blocks * 4096 > 300_000
    asked = node.run("run", serial_image, "--overlay", overlay, "--", "md5sum", "/root/mine")
    assert asked.out.split()[0] == mine
