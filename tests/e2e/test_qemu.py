"""Guests in QEMU: the tiny image with a stock kernel, and disks that boot by themselves.

By TCG, or by KVM where the machine has it: the tests do not depend on which.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from p2pcloop.errors import GuestError, NotHereError, UsageError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.units import BLOCK_SIZE
from tests.support.boot_disks import make_boot_disk, stock_kernel
from tests.support.programs import GUEST_OPTIONS, Node, Nodes, OnTerminal, tool
from tests.support.waiting import BOUND
from tools.tiny_image import SHELL_PROMPT

pytestmark = pytest.mark.e2e

QEMU = ("--vm", "qemu", *GUEST_OPTIONS)


SLOW = 3 * BOUND
"""Seconds for a boot: TCG needs ten times what User-Mode Linux does."""


@contextmanager
def attached(node: Node, name: str) -> Iterator[OnTerminal]:
    """The console of a guest, at its shell."""
    with OnTerminal(node, "attach", name, controlling=True) as terminal:
        terminal.expect(SHELL_PROMPT, SLOW)
        yield terminal


def leave(terminal: OnTerminal) -> None:
    terminal.send(b"\x1dd")
    assert terminal.wait(BOUND) == 0


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    stock_kernel()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


def test_a_guest_in_qemu_has_the_life_of_any_guest(node: Node, cloop: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.delta"
    options = ("--detach", "--name", "q1", "--overlay", overlay, "--net", "user")
    done = node.run("boot", cloop, *options, *QEMU)
    assert done.out == "q1\n"
    with attached(node, "q1") as terminal:
        assert terminal.run("tty; cat /proc/1/comm", BOUND) == "/dev/tty0\ninit\n"
        leave(terminal)
    # It has its card, and finds its way out.
    said = node.run("exec", "q1", "--", "sh", "-c", "uname -r; ip route; cat; exit 3", code=3).out
    assert said.startswith(stock_kernel().release)
    assert "default via 10.0.2.2 dev eth0" in said
    noise = random.Random(3).randbytes(1 << 20)
    (tmp_path / "noise").write_bytes(noise)
    node.run("cp", tmp_path / "noise", "q1:/root/")
    echo = subprocess.run(
        node.command("exec", "-i", "q1", "--", "cat"),
        input=noise, capture_output=True, timeout=BOUND, env=node.environment, check=False,
    )  # fmt: skip
    assert (echo.returncode, echo.stdout == noise, echo.stderr) == (0, True, b"")
    assert [guest["state"] for guest in node.json("ps")["guests"]] == ["running"]
    with attached(node, "q1") as terminal:
        terminal.send_line("reboot")
        terminal.expect("Restarting system", SLOW)
        terminal.expect(SHELL_PROMPT, SLOW)  # the same guest, started again
        assert terminal.run("wc -c </root/noise", BOUND) == f"{1 << 20}\n"
        leave(terminal)
    assert "runs in QEMU" in node.run("logs", "q1").out
    assert "has shut down" in node.run("stop", "q1").out
    (ended,) = node.json("ps", "--all")["guests"]
    assert (ended["state"], ended["exit_code"]) == ("ended", 0)


def test_a_command_in_qemu(node: Node, cloop: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    script = "printf 'a\\r\\n\\0b'; echo one >&2; cat >/dev/null; head -c 300000 /dev/zero; exit 7"
    done = subprocess.run(
        node.command("run", cloop, *QEMU, "--report", report, "--", "sh", "-c", script),
        input=b"x" * 100_000, capture_output=True, timeout=SLOW, env=node.environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, b"one\n")
    assert done.stdout == b"a\r\n\0b" + bytes(300_000)
    facts = json.loads(report.read_text())
    assert facts["exit"] == "done"
    assert facts["machine"] in ("qemu (kvm)", "qemu (tcg)")
    assert facts["kernel_release"] == stock_kernel().release


def test_what_cannot_be_is_refused_before_anything_starts(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    refused = node.run("boot", cloop, "--firmware", "bios", code=UsageError.exit_code).err
    assert "--vm qemu" in refused
    refused = node.run(
        "boot", cloop, "--vm", "qemu", "--firmware", "bios", code=UsageError.exit_code
    ).err
    assert "no whole disk" in refused
    nothing = tmp_path / "nothing"
    refused = node.run(
        "boot", cloop, "--vm", "qemu", "--kernel", nothing, code=NotHereError.exit_code
    ).err
    assert "get-stock-kernel" in refused


def boot_disk(node: Node, ref: str | Path, *options: str | Path) -> OnTerminal:
    return OnTerminal(node, "boot", ref, "--vm", "qemu", "--mem", "256M", *options)


def test_a_whole_disk_goes_from_node_to_node(nodes: Nodes, tmp_path: Path) -> None:
    """A vendor's disk in qcow2 is seeded, booted from a peer, changed, published, and booted by a
    third node, by BIOS and by UEFI."""
    raw, qcow2 = tmp_path / "disk.raw", tmp_path / "vendor.qcow2"
    make_boot_disk(raw)
    tool("qemu-img", "convert", "-O", "qcow2", raw, qcow2)
    seeder, reader, third = nodes.make(), nodes.make(), nodes.make()
    seeded = seeder.json("seed", "--raw", qcow2, "--name", "vm")
    assert seeded["filesystem"] == "gpt"
    _check_refusals(seeder, seeded["link"])

    overlay = tmp_path / "mine.delta"
    with boot_disk(reader, seeded["link"], "--overlay", overlay) as guest:
        guest.expect(SHELL_PROMPT, SLOW)
        assert "by=bios" in guest.sh("cat /proc/cmdline")
        guest.sh("head -c 400000 /bin/busybox | tr a-y b-z >/root/mine; sync")
        digest = guest.sh("sha256sum /root/mine")
        guest.send_line("poweroff")
        assert guest.wait(SLOW) == 0, guest.said
    made = reader.json("publish", overlay, "--name", "mine")
    changed = Overlay.inspect(overlay).data_blocks
    assert 400_000 // BLOCK_SIZE <= changed < 600
    assert made["layers"] == 2

    with boot_disk(third, made["link"], "--firmware", "uefi") as guest:
        guest.expect(SHELL_PROMPT, SLOW)
        assert "by=uefi" in guest.sh("cat /proc/cmdline")
        assert guest.sh("sha256sum /root/mine") == digest
        guest.send_line("poweroff")
        assert guest.wait(SLOW) == 0, guest.said
    whole = tmp_path / "mine.raw"
    third.run("export", made["link"], whole)
    assert made["stored"] <= 1.1 * _strongest(raw.read_bytes(), whole.read_bytes())


def _check_refusals(node: Node, link: str) -> None:
    """A whole disk boots in QEMU only, and there by its own init."""
    refused = node.run("boot", link, code=GuestError.exit_code).err
    assert "--vm qemu" in refused
    refused = node.run("run", link, "--vm", "qemu", "--", "true", code=UsageError.exit_code).err
    assert "own init" in refused


def _strongest(before: bytes, after: bytes) -> int:
    """The size of the blocks that differ, by the strongest zstd."""
    blocks = [after[at : at + BLOCK_SIZE] for at in range(0, len(after), BLOCK_SIZE)
              if after[at : at + BLOCK_SIZE] != before[at : at + BLOCK_SIZE]]  # fmt: skip
    return len(zstandard.ZstdCompressor(level=19).compress(b"".join(blocks)))
