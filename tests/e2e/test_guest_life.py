"""Guests in the background: found, reached, read, ended."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import termios
from pathlib import Path

import pytest

from p2pcloop.errors import (
    BusyError,
    GuestError,
    MismatchError,
    NeedsPackageError,
    NotHereError,
    UsageError,
)
from p2pcloop.store.guests import GuestFolder, find_guest, list_guests
from tests.support.boot_disks import stock_kernel
from tests.support.programs import GUEST_OPTIONS, Node, Nodes, OnTerminal, descendants
from tests.support.waiting import BOUND, wait_until
from tools.tiny_image import SHELL_PROMPT

from .conftest import DATA

pytestmark = pytest.mark.e2e

MKE2FS = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/sbin")


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


def boot(node: Node, ref: str | Path, *options: str | Path, code: int = 0) -> str:
    """Boot a guest in the background; its name, or what the command said."""
    done = node.run("boot", ref, "--detach", *GUEST_OPTIONS, *options, code=code)
    return done.err if code else done.out.strip()


def wait_until_up(node: Node, name: str) -> None:
    """Return once a guest has shown its prompt."""
    node.run("attach", name)  # its input ends at once, and it leaves the guest at a prompt


class Attached(OnTerminal):
    """`p2pcloop attach`, at a guest's shell."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(node, "attach", name, controlling=True)
        self.expect(SHELL_PROMPT, BOUND)

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as at a user's shell."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def leave(self) -> None:
        """Press the escape, then the key that leaves."""
        self.send(b"\x1dd")
        self.expect("runs on", BOUND)
        assert self.wait(BOUND) == 0


def test_a_guest_goes_on_without_a_terminal_until_it_is_stopped(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "mine.delta"
    assert boot(node, cloop, "--name", "first", "--overlay", overlay) == "first"
    assert boot(node, cloop) == "g1"
    by_name = {guest["name"]: guest for guest in node.json("ps")["guests"]}
    assert set(by_name) == {"first", "g1"}
    assert by_name["first"]["overlay"] == str(overlay)
    assert (by_name["g1"]["state"], by_name["g1"]["image"]) == ("running", str(cloop))
    table = node.run("ps").out.splitlines()
    assert [line.split()[0] for line in table] == ["NAME", "first", "g1"]

    with Attached(node, "first") as terminal:
        assert terminal.run("echo kept >/root/note; sync; echo $((40 + 2))", BOUND) == "42\n"
        terminal.leave()
    with Attached(node, "first") as terminal:  # its prompt is still there
        assert terminal.run("cat /root/note", BOUND) == "kept\n"
        assert terminal.run("stty size", BOUND) == "50 200\n"
        terminal.leave()

    assert "has shut down" in node.run("stop", "first", "g1").out
    assert node.json("ps")["guests"] == []
    ended = {guest["name"]: guest for guest in node.json("ps", "--all")["guests"]}
    assert [(guest["state"], guest["exit_code"]) for guest in ended.values()] == [("ended", 0)] * 2
    assert "echo kept" in node.run("logs", "first").out
    said = node.run("rm", "--guest", "first", "g1", "first").out
    assert said == "the guest first is forgotten\nthe guest g1 is forgotten\n"
    assert "no guest runs here" in node.run("ps", "--all").out

    # What it wrote is in its overlay.
    assert node.run("run", cloop, "--overlay", overlay, "--", "cat", "/root/note").out == "kept\n"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_the_end_of_a_boot_tells_where_the_changes_are(
    node: Node, cloop: Path, tmp_path: Path, kind: str
) -> None:
    """Also what to do with them: what it tells can be typed."""
    image, overlay = tmp_path / "tiny.cloop", tmp_path / "my changes"
    shutil.copyfile(cloop, image)
    ref = image if kind == "file" else node.json("seed", image)["link"]
    words = ("boot", ref, *GUEST_OPTIONS, "--overlay", overlay)
    with OnTerminal(node, *words, controlling=True) as terminal:
        terminal.expect(SHELL_PROMPT, BOUND)
        terminal.send_line("echo kept >/root/note; poweroff")
        terminal.expect(r"\n\r?\np2pcloop: the guest has shut down; ", BOUND)
        terminal.expect(r"my changes holds [\d.]+ kB of changes", BOUND)
        assert terminal.wait(BOUND) == 0
        told = terminal.printed.partition("has shut down")[2]
    [again, *passing_on] = [shlex.split(line) for line in re.findall(r" p2pcloop (.*)", told)]
    assert [line[0] for line in passing_on] == ["seed", "publish"][kind == "link" :]
    show = ("--", "cat", "/root/note")
    assert again[0] == "boot"
    assert node.run("run", *again[1:], *show).out == "kept\n"
    for line in passing_on:
        labels = {"LABEL": "mine", "REF": "tiny"}
        node.run(*(labels.get(word, word) for word in line))
    assert node.run("run", "mine", *show).out == "kept\n"


@pytest.mark.parametrize("verbose", [False, True])
def test_a_boot_at_a_terminal_is_one_line_until_the_prompt(
    nodes: Nodes, cloop: Path, verbose: bool
) -> None:
    seeder, reader = nodes.make(), nodes.make()
    link = seeder.seed(cloop)["link"]
    words = ("boot", link, "--mem", "128M", "--name", "g1", *(["-v"] if verbose else []))
    with OnTerminal(reader, *words, controlling=True) as terminal:
        if not verbose:
            terminal.expect(r"up after [\d.]+ s, [\d.]+ .B fetched, first byte after", BOUND)
        terminal.expect(SHELL_PROMPT, BOUND)
        assert ("Linux version" in terminal.printed) is verbose
        assert ("booting, " in terminal.printed) is not verbose
        assert terminal.run("echo $((40 + 2))", BOUND) == "42\n"
        terminal.send_line("poweroff")
        assert terminal.wait(BOUND) == 0
    assert "Linux version" in reader.run("logs", "g1").out


def test_a_boot_at_a_terminal_that_fails_shows_the_console(node: Node, cloop: Path) -> None:
    words = ("boot", cloop, "--mem", "128M", "--append", "init=/no/such")
    with OnTerminal(node, *words, controlling=True) as terminal:
        terminal.expect("Linux version", BOUND)
        terminal.expect("p2pcloop: cannot boot: .*/no/such", BOUND)
        terminal.expect("p2pcloop: the guest cannot boot: .*/no/such", BOUND)
        assert terminal.wait(BOUND) == GuestError.exit_code
        assert terminal.printed.index("booting, ") < terminal.printed.index("Linux version")


def test_a_boot_at_a_terminal_is_not_left_but_tells_how(node: Node, cloop: Path) -> None:
    with OnTerminal(node, "boot", cloop, *GUEST_OPTIONS, controlling=True) as terminal:
        terminal.expect(SHELL_PROMPT, BOUND)
        terminal.send(b"\x1dd")
        terminal.expect("it cannot be left", BOUND)
        terminal.expect("boot --detach", BOUND)
        assert terminal.run("echo $((40 + 2))", BOUND) == "42\n"
        terminal.send(b"\x1dK")
        terminal.expect("the guest was ended at once; its changes are gone", BOUND)
        assert terminal.wait(BOUND) == 128 + signal.SIGKILL


def test_a_guest_that_starts_is_followed_and_attached_to(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    gate, programs = tmp_path / "gate", tmp_path / "programs"
    os.mkfifo(gate)
    programs.mkdir()
    mke2fs = programs / "mke2fs"  # runs between the guest's record and its kernel
    mke2fs.write_text(f'#!/bin/sh\nread -r go <{gate}\nPATH=$PATH:/sbin\nexec {MKE2FS} "$@"\n')
    mke2fs.chmod(0o755)
    node.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    with node.started("boot", cloop, "--detach", *GUEST_OPTIONS, "--overlay-mode", "files"):
        wait_until(lambda: list_guests(node.home))
        follow, attach = ("logs", "g1", "--follow"), ("attach", "g1")
        with node.started(*follow) as follower, node.started(*attach) as attached:
            gate.write_text("go\n")
            assert follower.stdout is not None
            line = follower.stdout.readline
            wait_until(lambda: "p2pcloop: starts" in line())
            out, err = attached.communicate(timeout=BOUND)
            assert (attached.returncode, "runs on" in err) == (0, True), out + err
            assert find_guest(node.home, "g1").state == "running"


def test_a_guest_whose_socket_cannot_be_made_runs_all_the_same(node: Node, cloop: Path) -> None:
    """As in a home on a file system that takes no sockets."""
    (node.home.guests / "g1" / "control.sock.new").mkdir(parents=True, mode=0o700)
    said = node.run("boot", cloop, "--detach", *GUEST_OPTIONS, "--name", "g1").err
    assert "`attach` and `logs --follow` do not reach the guest g1" in said
    said = node.run("attach", "g1", code=GuestError.exit_code).err
    assert "has no console to attach to" in said
    assert find_guest(node.home, "g1").state == "running"


def test_what_came_for_a_guest_is_told_to_its_end_and_after(nodes: Nodes, cloop: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    name = boot(reader, seeder.seed(cloop)["link"])
    wait_until_up(reader, name)
    [running] = reader.json("ps")["guests"]
    assert 0 < running["fetched"] < cloop.stat().st_size
    reader.run("stop", name)
    [ended] = reader.json("ps", "--all")["guests"]
    assert running["fetched"] <= ended["fetched"] < cloop.stat().st_size
    timeline = GuestFolder(reader.home, name).read_timeline()
    assert timeline is not None
    assert 0 < sum(span.came for span in timeline.spans) <= ended["fetched"]
    assert find_guest(reader.home, name).record.fetched == ended["fetched"]


def test_the_record_of_a_guest_outlives_p2pcloopd(nodes: Nodes, cloop: Path) -> None:
    """Whether it is ended in order or killed, and whether the guest runs or has ended."""
    seeder, reader = nodes.make(), nodes.make()
    name = boot(reader, seeder.seed(cloop)["link"], "--name", "g1", "--net", "user")
    wait_until_up(reader, name)
    running = find_guest(reader.home, name).record

    def is_told(state: str) -> None:
        [guest] = reader.json("ps", "--all")["guests"]
        assert (guest["state"], guest["pid"]) == (state, running.pid)
        reader.run("daemon", "start")
        of_node = reader.json("status")["guests"]
        assert [each["name"] for each in of_node] == ([name] if state == "running" else [])

    reader.run("daemon", "stop", "--force")
    is_told("running")
    reader.signal(signal.SIGKILL)
    is_told("running")
    assert find_guest(reader.home, name).record == running
    # It goes on to read what was not here.
    read = ("exec", name, "--", "sh", "-c", "wc -c </root/data")
    assert reader.run(*read).out == f"{len(DATA)}\n"
    reader.run("stop", name)
    ended, log = find_guest(reader.home, name).record, reader.run("logs", name).out
    reader.run("daemon", "stop")
    is_told("ended")
    assert find_guest(reader.home, name).record == ended
    assert reader.run("logs", name).out == log


def test_attach_ends_with_the_guest(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    with Attached(node, name) as terminal:
        terminal.send_line("poweroff")
        terminal.expect("has ended", BOUND)
        assert terminal.wait(BOUND) == 0
    said = node.run("attach", name, code=GuestError.exit_code).err
    assert f"the guest {name} does not run" in said
    assert "logs" in said


def test_piped_input_is_held_until_the_prompt_and_then_the_guest_is_left(
    node: Node, cloop: Path
) -> None:
    name = boot(node, cloop)  # its kernel has just begun
    words = node.command("attach", name)
    for _ in range(2):  # then with a prompt that stands there already
        typed = subprocess.run(
            words,
            input=b"echo $((6 * 7))\ncat\nread by cat\n",
            check=False,
            env=node.environment,
            capture_output=True,
            timeout=BOUND,
        )
        assert typed.returncode == 0, typed
        lines = typed.stdout.replace(b"\r", b"").split(b"\n")
        assert b"42" in lines, typed
        assert lines.count(b"read by cat") == 2, typed  # the echo, and cat's own
    assert find_guest(node.home, name).state == "running"


def test_one_that_does_not_run_keeps_no_other_from_being_stopped(node: Node, cloop: Path) -> None:
    first, second = boot(node, cloop), boot(node, cloop)
    wait_until_up(node, second)
    node.run("stop", first)
    done = node.run("stop", "none", first, second, code=NotHereError.exit_code)
    assert f"{second} has shut down" in done.out
    assert "there is no guest none" in done.err
    assert f"the guest {first} does not run" in done.err


def test_a_guest_that_ended_is_started_again_or_replaced(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.cloop").symlink_to(cloop)
    options = ("--detach", *GUEST_OPTIONS, "--name", "web", "--overlay", "mine.delta")
    with node.started("boot", "tiny.cloop", *options, cwd=tmp_path) as booting:
        assert booting.communicate(timeout=BOUND)[0] == "web\n"
    node.run("exec", "web", "--", "sh", "-c", "echo web >/root/kept; sync")
    wait_until_up(node, "web")
    node.run("start", "web", code=BusyError.exit_code)
    node.run("stop", "web")
    log = node.run("logs", "web").out
    assert node.run("start", "web").out == "web\n"
    assert node.run("exec", "web", "--", "cat", "/root/kept").out == "web\n"
    wait_until_up(node, "web")
    assert node.run("logs", "web").out.startswith(log)
    again = find_guest(node.home, "web").record
    node.run("stop", "web")
    assert (again.kept, again.memory) == (True, 128 << 20)
    # It names the same overlay, which the start found, too: its path is relative.
    assert again.overlay == str(tmp_path / "mine.delta")
    (tmp_path / "mine.delta").rename(tmp_path / "gone")
    node.run("start", "web", code=NotHereError.exit_code)
    assert boot(node, cloop, "--name", "web", "--replace") == "web"
    wait_until_up(node, "web")
    assert not node.run("logs", "web").out.startswith(log)
    assert find_guest(node.home, "web").record.overlay is None


def test_a_guest_goes_on_after_its_changes_were_published(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    """The newest version of its image is another one then."""
    name = node.seed(cloop, "published")["name"]
    overlay = tmp_path / "mine.delta"
    assert boot(node, name, "--name", "again", "--overlay", str(overlay)) == "again"
    node.run("exec", "again", "--", "sh", "-c", "echo again >/root/kept; sync")
    wait_until_up(node, "again")
    node.run("stop", "again")
    assert node.json("publish", overlay, "--name", "published")["version"] == 2
    refused = node.run("boot", name, "--overlay", overlay, code=MismatchError.exit_code)
    assert f"was made on another image: {name}, version 1" in refused.err
    assert f"{name} --at 1" in refused.err
    assert node.run("start", "again").out == "again\n"
    assert node.run("exec", "again", "--", "cat", "/root/kept").out == "again\n"
    wait_until_up(node, "again")
    assert find_guest(node.home, "again").record.version == 1
    node.run("stop", "again")


@pytest.mark.parametrize("until", ["at once", "its init"])
def test_a_guest_that_has_just_begun_is_shut_down_in_order(
    node: Node, cloop: Path, until: str
) -> None:
    name = boot(node, cloop)
    if until == "its init":
        wait_until(lambda: "p2pcloop: starts " in node.run("logs", name).out)
    assert node.run("stop", name).out == f"{name} has shut down\n"


def test_logs_follow_a_guest_to_its_end(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    wait_until_up(node, name)
    with node.started("logs", name, "--follow") as follower:
        node.run("stop", name)
        out, err = follower.communicate(timeout=BOUND)
    assert (follower.returncode, err) == (0, "")
    assert "reboot:" in out
    assert out == node.run("logs", name).out


def test_one_whose_process_was_killed_is_told_and_forgotten(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    os.kill(find_guest(node.home, name).record.pid, signal.SIGSTOP)  # not to end it in order
    node.kill_guest(name)
    assert "its process was killed" in node.run("ps", "--all").out
    node.run("stop", name, code=GuestError.exit_code)
    node.run("rm", "--guest", name)
    node.run("logs", name, code=NotHereError.exit_code)


@pytest.mark.parametrize("machine", ["uml", "qemu"])
def test_nothing_is_left_of_a_guest_whose_process_was_killed(
    node: Node, cloop: Path, machine: str
) -> None:
    if machine == "qemu":
        stock_kernel()
    with tempfile.TemporaryDirectory(prefix="p2pk-", dir="/tmp") as folder:
        node.environment["TMPDIR"] = folder
        words = ("boot", cloop, "--detach", "--name", "g1", "--vm", machine, *GUEST_OPTIONS)
        with node.started(*words) as booting:
            assert booting.communicate(timeout=BOUND)[0] == "g1\n"
        assert list(Path(folder).iterdir())
        first, *others = descendants(find_guest(node.home, "g1").record.pid)
        first.kill()
        for process in others:
            process.wait()
        assert list(Path(folder).iterdir()) == []
    left = {path.name for path in GuestFolder(node.home, "g1").path.iterdir()}
    assert left == {"record.json", "console.log", "lock"}


def test_one_overlay_is_of_one_guest_which_is_named(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "mine.delta"
    boot(node, cloop, "--name", "first", "--overlay", overlay)
    said = boot(node, cloop, "--name", "second", "--overlay", overlay, code=BusyError.exit_code)
    assert "the guest first has" in said
    assert "p2pcloop stop first" in said
    said = boot(node, cloop, "--name", "first", code=BusyError.exit_code)
    assert "the guest first runs" in said
    said = node.run("rm", "--guest", "first", code=BusyError.exit_code).err
    assert "p2pcloop stop first" in said
    assert "choose another name" not in said
    assert [guest["name"] for guest in node.json("ps", "--all")["guests"]] == ["first"]
    wait_until_up(node, "first")
    assert "first was ended" in node.run("stop", "first", "--time", "0").out
    assert find_guest(node.home, "first").record.reason == "killed"
    said = boot(node, cloop, "--name", "first", code=UsageError.exit_code)
    assert "rm --guest first" in said


def test_what_does_not_start_is_told_at_once(node: Node, cloop: Path, tmp_path: Path) -> None:
    (tmp_path / "no.img").write_bytes(bytes(1 << 20))
    said = boot(node, tmp_path / "no.img", "--name", "g1", code=GuestError.exit_code)
    assert "no.img cannot boot" in said
    said = boot(node, cloop, "--kernel", tmp_path, code=NeedsPackageError.exit_code)
    assert str(tmp_path) in said
    boot(node, cloop, "--console", tmp_path / "log", code=UsageError.exit_code)
    boot(node, cloop, "--name", "Not-A-Name", code=UsageError.exit_code)
    assert node.json("ps", "--all")["guests"] == []


def test_one_that_cannot_boot_keeps_why(node: Node, cloop: Path) -> None:
    name = boot(node, cloop, "--append", "init=/no/such")
    with node.started("logs", name, "--follow") as follower:
        out, _ = follower.communicate(timeout=BOUND)
    assert "/no/such" in out
    record = find_guest(node.home, name).record
    assert record.reason == "failed"
    assert record.error is not None
    assert "/no/such" in record.error
    assert json.loads(node.run("ps", "--all", "--json").out)["guests"][0]["exit_code"] == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(
    node: Node, cloop: Path, number: signal.Signals
) -> None:
    name = boot(node, cloop)
    with Attached(node, name) as terminal:
        assert not terminal.echoes()
        terminal.process.send_signal(number)
        assert terminal.wait(BOUND) == 128 + number
        assert terminal.echoes()
    assert find_guest(node.home, name).state == "running"


def test_a_reboot_keeps_those_who_are_attached_and_the_size(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    with Attached(node, name) as terminal:
        terminal.send_line("reboot")
        terminal.expect("p2pcloop: starts", BOUND)
        terminal.expect(SHELL_PROMPT, BOUND)
        assert terminal.run("stty size", BOUND) == "50 200\n"
        terminal.leave()


def test_attach_ends_with_its_output(node: Node, cloop: Path) -> None:
    name = boot(node, cloop)
    with Attached(node, name) as terminal:
        terminal.leave()
    read_end, write_end = os.pipe()
    os.close(read_end)
    with node.started("attach", name, stdin=subprocess.PIPE, stdout=write_end) as attached:
        os.close(write_end)
        assert attached.stdin is not None
        attached.stdin.write("echo what no one reads\n")
        attached.stdin.flush()
        assert attached.wait(BOUND) == 0
    assert find_guest(node.home, name).state == "running"


def test_one_that_was_told_to_end_before_its_guest_ran_leaves_none(
    node: Node, cloop: Path, tmp_path: Path
) -> None:
    kernel, asked = tmp_path / "kernel", tmp_path / "asked"
    kernel.write_text(f"#!/bin/sh\n: >{asked}\nexec sleep 300\n")
    kernel.chmod(0o755)
    words = ("boot", cloop, "--detach", *GUEST_OPTIONS, "--kernel", kernel)
    with node.started(*words) as command:
        wait_until(asked.exists)
        command.terminate()
        assert command.wait(BOUND) == 128 + signal.SIGTERM
    assert node.json("ps", "--all")["guests"] == []
