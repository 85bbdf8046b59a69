"""`p2pcloop run`: a command in a guest, as if it ran here."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from p2pcloop.errors import GuestError, StorageError
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, find_kernel, load_modules
from p2pcloopd.guest.system.kernel_words import OMISSIONS
from tests.support.programs import Node, Nodes, descendants, tool
from tests.support.waiting import BOUND

pytestmark = pytest.mark.e2e


class Ran(NamedTuple):
    """What a command in a guest came to."""

    code: int
    out: bytes
    err: bytes


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


def run(node: Node, image: str | Path, *words: str | Path, typed: bytes | None = None) -> Ran:
    """Run `p2pcloop run`; input that is not given is /dev/null."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if typed is None else {"input": typed}
    done = subprocess.run(
        node.command("run", image, "--mem", "128M", *words),
        env=node.environment, capture_output=True, timeout=BOUND, check=False, **given,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def test_output_is_exact_and_the_exit_code_is_the_commands(node: Node, cloop: Path) -> None:
    script = """
        printf 'a\\r\\n\\0b'
        echo one >&2
        echo two >/dev/stderr
        sleep 1000 &
        [ -t 0 ] || [ -t 1 ] || [ -e /proc/2000 ] || [ "$(id -u)$PWD" != 0/root ] || exit 3
    """
    assert run(node, cloop, "--", "sh", "-c", script) == Ran(3, b"a\r\n\0b", b"one\ntwo\n")


def test_output_that_cannot_be_written_is_an_error(node: Node, cloop: Path) -> None:
    script = "echo lost; echo kept >&2"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            node.command("run", cloop, "--mem", "128M", "--", "sh", "-c", script),
            env=node.environment, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE,
            timeout=BOUND, check=False,
        )  # fmt: skip
    assert done.returncode == StorageError.exit_code
    assert b"kept\n" in done.stderr
    assert b"cannot write the command's standard output: No space left" in done.stderr


def test_words_are_passed_as_they_are(node: Node, cloop: Path) -> None:
    words = ("it's", "a  b", "$HOME", "", "new\nline", "*", "-n", "ü")
    ran = run(node, cloop, "--", "printf", "%s|", *words)
    assert ran == Ran(0, "".join(f"{word}|" for word in words).encode(), b"")


def test_input_is_piped_through_and_changes_are_kept(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    data = random.Random(1).randbytes(1 << 20)
    overlay, merged, report = tmp_path / "o", tmp_path / "merged.img", tmp_path / "report"
    words = ("--overlay", overlay, "--report", report, "--", "tee", "mine")
    assert run(node, cloop, *words, typed=data) == Ran(0, data, b"")
    told = json.loads(report.read_text())
    assert (told["exit"], told["exit_code"]) == ("done", 0)
    node.run("export", cloop, merged, "--overlay", overlay)
    tool("e2fsck", "-fn", merged)
    tool("debugfs", "-R", f"dump /root/mine {tmp_path}/mine", merged)
    assert (tmp_path / "mine").read_bytes() == data


def test_a_stock_image_without_an_init_from_a_peer(
    nodes: Nodes, node: Node, image: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.img"
    bare.write_bytes(image.read_bytes())
    for name in ("sbin/init", "bin/init", "etc/inittab"):
        tool("debugfs", "-w", "-R", f"rm /{name}", bare)
    program, requests = tmp_path / "program", tmp_path / "requests"
    program.write_text('#!/bin/sh\necho "the image has $0 $*"; env | sort\n')
    requests.write_text(  # busybox has a dpkg, too
        f"rm bin/dpkg\ncd bin\nwrite {program} dpkg\nset_inode_field dpkg mode 0100755\n"
    )
    tool("debugfs", "-w", "-f", requests, bare)
    link = nodes.make().seed(bare)["link"]
    ran = run(node, link, "--", "dpkg", "-i")
    assert ran.code == 0
    assert ran.out.decode().startswith("the image has /bin/dpkg -i\nHOME=/root\nLOGNAME=root\n")
    ran = run(node, link, "--", "no-such-command")
    assert (ran.code, ran.out) == (127, b"")
    assert b"no-such-command" in ran.err


def test_signals_reach_the_command(node: Node, cloop: Path) -> None:
    script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    with node.started("run", cloop, "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=BOUND)[0] == "interrupted\n"
        assert process.returncode == 5


def test_a_second_signal_ends_a_command_that_does_not_listen(node: Node, cloop: Path) -> None:
    script = "trap '' TERM; echo ready; sleep 1000"
    with node.started("run", cloop, "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        others = descendants(process.pid)[1:]
        process.terminate()
        process.send_signal(signal.SIGINT)  # another one: equal ones may count as one
        process.communicate(timeout=BOUND)
        assert process.returncode == 128 + signal.SIGKILL
    assert not any(other.runs() for other in others)


def test_a_reader_that_hangs_up_ends_the_command(node: Node, cloop: Path) -> None:
    with node.started("run", cloop, "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(BOUND) == 128 + signal.SIGPIPE


def test_a_guest_that_ends_before_its_command_is_an_error(node: Node, cloop: Path) -> None:
    ran = run(node, cloop, "--", "poweroff", "-f")
    assert (ran.code, ran.out) == (GuestError.exit_code, b"")
    assert b"before the command did" in ran.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "0 0 0 0"),
        (("--kernel", "system"), "0 0 0 0"),
        (("--append", " ".join(one.undo for one in OMISSIONS)), "512 64 0 1"),
    ],
    ids=["default", "system", "undone"],
)
def test_what_guests_leave_out(
    node: Node, cloop: Path, options: tuple[str, ...], told: str
) -> None:
    """Legacy terminals, serial lines, the first terminal of /dev/pts, and a chosen RAID 6."""
    script = """
        set -- $(ls /dev | grep -c '^[pt]ty[a-ep-z][0-9a-f]$') $(ls /dev | grep -c ttyS)
        exec 3<>/dev/ptmx
        echo "$@" $(ls /dev/pts | grep -v ptmx) $(dmesg | grep -c 'raid6: using algorithm')
    """
    assert run(node, cloop, *options, "--", "sh", "-c", script) == Ran(0, f"{told}\n".encode(), b"")


@pytest.mark.parametrize("program", [None, SYSTEM_KERNEL], ids=["default", "system"])
def test_md_has_no_raid6_where_the_kernel_has_none(
    node: Node, cloop: Path, program: Path | None
) -> None:
    """Its module is refused: with it, a write to a RAID 6 would be a panic."""
    kernel = find_kernel(program)
    modules = load_modules(kernel, ["raid456"])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as files:
        for name, data in modules:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            files.addfile(entry, io.BytesIO(data))
    order = " ".join(name for name, _ in modules)
    script = f"cd /run && tar -x && for one in {order}; do insmod $one || echo no $one; done"
    words = ("--kernel", kernel.path, "--", "sh", "-c", script)
    refused = run(node, cloop, *words, typed=archive.getvalue())
    assert (refused.code, refused.out) == (0, b"no raid456\n"), refused.err
    kept = run(node, cloop, "--append", "p2pcloop.raid6", *words, typed=archive.getvalue())
    assert kept == Ran(0, b"", b"")
