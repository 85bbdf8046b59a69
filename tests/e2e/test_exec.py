"""Commands in guests that run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import GuestError, NotHereError, UsageError
from p2pcloop.store.guests import GuestFolder
from p2pcloopd.guest.channel.client import remote_command
from p2pcloopd.guest.system.kernel import SYSTEM_KERNEL, find_kernel
from tests.support.programs import EXEC, GUEST_OPTIONS, Node, Nodes
from tests.support.stock_images import stock_image
from tests.support.waiting import BOUND, wait_until

pytestmark = pytest.mark.e2e

NOISE = random.Random(2).randbytes(3 << 20)

INITS = {"trixie": "systemd", "sysvinit": "init", "busybox": "init"}
"""Stock images, and what their process 1 calls itself."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


@pytest.fixture(scope="module")
def guest(node: Node, cloop: Path) -> str:
    """A guest that has booted: on a busy machine the first command would tell that it waits."""
    name = boot(node, cloop)
    node.run(*EXEC, name, "--", "true")
    return name


def boot(node: Node, image: Path, *options: str | Path) -> str:
    return node.run("boot", image, "--detach", *GUEST_OPTIONS, *options).out.strip()


def piped(node: Node, *words: str, data: bytes, code: int = 0) -> bytes:
    """What a command answers to its standard input."""
    done = subprocess.run(
        node.command("exec", "-i", *words),
        input=data, capture_output=True, timeout=BOUND, env=node.environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, b"")
    return done.stdout


def test_output_errors_and_exit_code_are_the_commands(node: Node, guest: str) -> None:
    done = node.run("exec", guest, "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert done == ("out\n", "err\n")
    words = ["a b", "new\nline\n", "", "back\\slash\\n", "ü", "it's", "-x"]
    assert node.run("exec", guest, "--", "printf", "%s|", *words).out == "".join(
        f"{word}|" for word in words
    )
    assert node.run("exec", guest, "--", "sh", "-c", "kill -9 $$", code=137) == ("", "")
    done = node.run("exec", guest, "--", "no-such-command", code=127)
    assert done == ("", "no-such-command: not found\n")
    assert "Permission denied" in node.run("exec", guest, "--", "/etc/passwd", code=126).err
    assert node.run("exec", guest, "--", "pwd").out == "/root\n"
    # Without -i the command has no input.
    assert node.run("exec", guest, "--", "cat") == ("", "")
    node.run("exec", guest, "--", "true", "x" * (1 << 16), code=UsageError.exit_code)


def test_a_list_of_processes_does_not_end_the_output(node: Node, guest: str) -> None:
    """No program in the guest sees what ends it."""
    script = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; echo; echo end"
    seen = piped(node, guest, "--", "sh", "-c", script, data=b"")
    assert b"serve" in seen
    assert seen.endswith(b"\nend\n")


def test_every_byte_goes_through_both_ways(node: Node, guest: str) -> None:
    assert piped(node, guest, "--", "cat", data=NOISE) == NOISE
    assert piped(node, guest, "--", "wc", "-c", data=b"").strip() == b"0"
    # The next one gets nothing of what the one before has left unread.
    assert piped(node, guest, "--", "head", "-c", "1", data=NOISE) == NOISE[:1]
    assert piped(node, guest, "--", "cat", data=b"mine") == b"mine"


def test_several_commands_run_at_once(node: Node, guest: str) -> None:
    with (
        node.started("exec", "-i", guest, "--", "cat", stdin=subprocess.PIPE) as first,
        node.started("exec", "-i", guest, "--", "cat", stdin=subprocess.PIPE) as second,
    ):
        assert node.run("exec", guest, "--", "echo", "third").out == "third\n"
        assert second.communicate("second", timeout=BOUND) == ("second", "")
        assert first.communicate("first", timeout=BOUND) == ("first", "")


def test_signals_are_handed_on(node: Node, guest: str) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done"
    with node.started("exec", guest, "--", "sh", "-c", script) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "ready\n"
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=BOUND)
    assert (command.returncode, out, err) == (3, "caught\n", "")


async def test_a_command_that_has_just_started_gets_signals(node: Node, guest: str) -> None:
    folder = GuestFolder(node.home, guest)
    for _ in range(5):
        async with remote_command(folder, [b"sleep", b"1000"]) as command:
            await command.signal(signal.SIGINT)
            with trio.fail_after(BOUND):
                assert [await command.read(error=error) for error in (True, False)] == [b"", b""]
                assert await command.wait() == 128 + signal.SIGINT


@pytest.mark.parametrize("closed", ["2", "1 2"])
def test_the_exit_code_comes_also_where_its_output_is_not_taken(
    node: Node, guest: str, closed: str
) -> None:
    script = "echo a >&2; echo a; sleep 1; exit 3"
    with ExitStack() as stack:
        pipes = {}
        for name in closed.split():
            read, pipes[int(name)] = os.pipe()
            os.close(read)
            stack.callback(os.close, pipes[int(name)])
        command = node.command("exec", guest, "--", "sh", "-c", f"trap '' PIPE; {script}")
        done = subprocess.run(
            command, stdout=pipes.get(1), stderr=pipes[2], env=node.environment,
            timeout=BOUND, check=False,
        )  # fmt: skip
    assert done.returncode == 3


@pytest.mark.parametrize("end", ["kill", "twice", "reader"])
def test_a_command_whose_client_is_gone_ends(node: Node, guest: str, end: str) -> None:
    script = f"echo $$; trap '' INT; exec yes {end}"
    with node.started("exec", guest, "--", "sh", "-c", script) as command:
        assert command.stdout is not None
        pid = command.stdout.readline().strip()
        if end == "reader":
            command.stdout.close()
        elif end == "kill":
            command.kill()
        else:
            command.send_signal(signal.SIGINT)
            command.send_signal(signal.SIGTERM)  # the kernel may join two equal ones
        wait_until(lambda: not _runs(node, guest, pid))


def _runs(node: Node, guest: str, pid: str) -> bool:
    out = node.run("exec", guest, "--", "sh", "-c", f"kill -0 {pid} 2>/dev/null && echo yes; :").out
    return out == "yes\n"


def test_what_a_command_leaves_behind_holds_nothing_up(node: Node, guest: str) -> None:
    done = node.run("exec", guest, "--", "sh", "-c", "sleep 1000 & echo $!")
    pid = done.out.strip()
    assert _runs(node, guest, pid)
    node.run("exec", guest, "--", "kill", pid)


def test_a_guest_that_ends_ends_its_commands(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    with node.started(*EXEC, name, "--", "sh", "-c", "echo begun; exec sleep 1000") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        node.run("stop", name)
        _, err = command.communicate(timeout=BOUND)
    assert command.returncode in (GuestError.exit_code, 128 + signal.SIGTERM), err
    said = node.run("exec", name, "--", "true", code=GuestError.exit_code).err
    assert f"the guest {name} does not run" in said
    node.run("exec", "none", "--", "true", code=NotHereError.exit_code)


def test_a_kernel_without_the_module_boots_and_says_why(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    """The kernel in a tree of its own: its modules are looked for there first."""
    kernel = find_kernel(SYSTEM_KERNEL)
    assert kernel.modules is not None
    modules = tmp_path / "lib/uml/modules" / kernel.release
    (tmp_path / "bin").mkdir()
    copy = tmp_path / "bin/linux.uml"
    copy.write_bytes(kernel.path.read_bytes())
    copy.chmod(0o755)
    modules.mkdir(parents=True)
    (modules / "kernel").symlink_to(kernel.modules / "kernel")
    for table in ("modules.dep", "modules.builtin"):
        lines = (kernel.modules / table).read_text().splitlines(keepends=True)
        kept = "".join(line for line in lines if "virtio_console" not in line)
        (modules / table).write_text(kept)
    name = boot(node, cloop, "--kernel", copy)
    node.run("attach", name)  # it comes up
    said = node.run("exec", name, "--", "true", code=GuestError.exit_code).err
    assert f"({kernel.release}) lacks the module virtio_console" in said
    node.run("stop", name)


@pytest.mark.parametrize("image", INITS)
def test_the_agent_lives_beside_each_init(node: Node, image: str) -> None:
    """It sees what the init has mounted, outlives its start, and ends with it."""
    name = node.run("boot", stock_image(image), "--detach", "--name", f"my-{image}").out.strip()
    up = "while ! pidof agetty getty >/dev/null; do sleep 0.2; done"
    node.run(*EXEC, name, "--", "sh", "-c", up)
    assert node.run("exec", name, "--", "cat", "/proc/1/comm").out == f"{INITS[image]}\n"

    def mounts(of: str) -> list[str]:
        lines = node.run("exec", name, "--", "cat", f"/proc/{of}/mounts").out.splitlines()
        # systemd mounts credentials for its units, for moments.
        return [line for line in lines if " /run/credentials/" not in line]

    wait_until(lambda: mounts("self") == mounts("1"), "an init may mount more just now")
    said = node.run("exec", name, "--", "cat", "/proc/sys/kernel/hostname", "/proc/cpuinfo").out
    host_name = "tiny" if image == "busybox" else name  # whose start script sets one
    assert said.startswith(f"{host_name}\nprocessor\t: 0\ncore id\t: 0\n")
    assert said.endswith("\n\n")
    # Ctrl-Alt-Del asks the init, which may have been about to begin.
    assert node.run("exec", name, "--", "cat", "/proc/sys/kernel/ctrl-alt-del").out == "0\n"
    if image == "trixie":
        assert any(" /run tmpfs " in line for line in mounts("1"))
        # Where systemd has put what it found running: a scope that it never stops.
        assert node.run("exec", name, "--", "cat", "/proc/self/cgroup").out == "0::/init.scope\n"
        failed = node.run("exec", name, "--", "systemctl", "--failed", "--plain", "--no-legend").out
        # The image has no modules for this kernel.
        assert [line.split()[0] for line in failed.splitlines()] in (
            [],
            ["systemd-modules-load.service"],
        )
    assert f"{name} has shut down" in node.run("stop", name).out


def test_commands_run_again_after_a_reboot(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    boot_id = (*EXEC, name, "--", "cat", "/proc/sys/kernel/random/boot_id")
    first = node.run(*boot_id).out
    with node.started("exec", name, "--", "sh", "-c", "reboot; exec sleep 1000") as command:
        command.communicate(timeout=BOUND)
    assert command.returncode in (GuestError.exit_code, 128 + signal.SIGTERM)

    def another_boot() -> bool:
        with node.started(*boot_id) as command:
            out, _ = command.communicate(timeout=BOUND)
        return command.returncode == 0 and out != first

    wait_until(another_boot)
    node.run("stop", name)
