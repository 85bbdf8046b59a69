"""Every command that can take long shows how far it is, or what it waits for.

A table: the commands run one after the other in one node. What is recorded are the bars and the
waits that are begun where progress is shown; how they are drawn is tests/client/test_progress.py.
"""

from __future__ import annotations

import lzma
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from p2pcloop.cli import migrate, status, stop
from p2pcloop.client import control_client, progress, rehearsal
from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.guests import GuestProcess
from p2pcloop.client.invocation import is_quiet, prints_json
from p2pcloop.errors import DaemonError, GuestError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.making.local import inspect_file, open_local
from p2pcloop.protocol.control import ControlReceiver, Reply, Request, encode
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import keep_profile
from p2pcloopd.commands import rebase
from p2pcloopd.guest import with_block_server
from p2pcloopd.guest.unseen import importing
from tests.support.cds import make_iso
from tests.support.command import Run
from tests.support.images import ignore, make_image, write_cloop_file
from tests.support.waiting import BOUND
from tools.man_pages import commands

DESCRIPTION = "the description of the image"
HASHED = "the content to be hashed"
DISK = "the disk to keep it"


@dataclass(frozen=True)
class Row:
    """A command line, what it shows, and its exit code."""

    line: str
    shows: set[str] = field(default_factory=set)
    code: int = 0


TABLE = [
    Row("daemon start", {"p2pcloopd to start"}),
    Row("info packed.xz --raw", {"unpacking"}),
    Row("seed one.cloop", {"reading", HASHED}),
    Row("seed knoppix.iso", {"reading", HASHED}),
    Row("seed two.cloop --name quick", {"reading", HASHED}),
    Row("info one", {DESCRIPTION}),
    Row("fetch one", {"fetching", "the image"}),
    Row("pin one", {DESCRIPTION}),
    Row("unpin one", {DESCRIPTION}),
    Row("verify one", {"verifying", "the content to be read"}),
    Row("verify one.cloop", {"verifying"}),
    Row("verify mine.delta", {"the tables of the overlay"}),
    Row("export one out.img", {"fetching", "writing", DISK}),
    Row("export one.cloop out.cloop", {"reading", "writing", DISK}),
    Row("export one out.qcow2", {"writing", "qemu-img", DISK}),
    Row("export one /dev/null", {"writing"}),
    Row("export knoppix same.iso --iso", {"copying", DISK}),
    Row("export one out.iso --iso --cd knoppix.iso", {"writing", "writing the CD", DISK}),
    Row("publish mine.delta --name mine --base one", {"comparing", "packing", HASHED}),
    Row("diff one mine", {DESCRIPTION, "the maps of the images"}),
    Row("squash mine --all", {"fetching", "comparing", "packing", HASHED}),
    Row("profile show one.cloop", {"reading"}),
    Row("profile export one.cloop out.profile", {"reading"}),
    Row("profile attach one.cloop out.profile", {"reading"}),
    Row("profile forget one.cloop", {"reading"}),
    Row("optimize one --name hot", {"packing", "a comparison with the layers that are there"}),
    Row("mirror one web", {"fetching", "verifying", "copying"}),
    Row("mirror --check http://127.0.0.1:1/", {"the answers of the mirror"}, 12),
    Row("picture one -o map.svg", {"the map of the image"}),
    Row("log one", {DESCRIPTION}),
    Row("update one", {DESCRIPTION}),
    Row("unpublish quick", {DESCRIPTION}),
    Row("gc --dry-run", {"room on the disk to be given back"}),
    Row("rm quick --published", {"the image to be removed"}),
    Row("rebase mine.delta --onto two.img", {"reading", "guests that compare the images"}),
    Row("import tree --base knoppix --overlay imported.delta", {"reading", "importing"}, 10),
    Row("doctor", {"the sandbox", "KVM", "QEMU"}),
    Row("stop g1", {"the end of g1"}),
    Row("daemon stop --force", {"p2pcloopd to end"}),
]

ELSEWHERE = {
    "cp": "tests/e2e/test_cp.py has guests",
    "suspend": "test_a_suspend_shows_what_it_waits_for",
    "migrate": "test_a_move_to_another_machine_shows_what_it_waits_for",
}

OF_ITS_OWN = {
    **dict.fromkeys(("boot", "run", "resume", "start"), "the line of a boot, and the guest"),
    **dict.fromkeys(("attach", "exec", "logs"), "what the guest prints"),
    **dict.fromkeys(("block", "mount", "netboot"), "serves until it is ended"),
    **dict.fromkeys(("daemon run", "p2pcloopd"), "serves until it is ended"),
    "config edit": "an editor",
}

SHORT = {
    **dict.fromkeys(("config set", "config show", "config unset", "limit"), "one file"),
    **dict.fromkeys(("name add", "name forget", "name list"), "one file"),
    **dict.fromkeys(("ps", "display", "images", "web", "umount"), "small files of the home"),
    **dict.fromkeys(("status", "metrics", "daemon status"), "one question to p2pcloopd"),
    **dict.fromkeys(
        ("key export", "key import", "key list", "key new", "key show", "key trust"), "keys"
    ),
}


def test_each_command_is_in_one_table() -> None:
    all_commands = [
        path.removeprefix("p2pcloop ")
        for path, context in commands()
        if not isinstance(context.command, click.Group)
    ]
    lines = [f"{row.line} " for row in TABLE]
    in_table = {name for name in all_commands if any(line.startswith(f"{name} ") for line in lines)}
    tables = [in_table, set(ELSEWHERE), set(OF_ITS_OWN), set(SHORT)]
    assert sorted(name for table in tables for name in table) == sorted(all_commands)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is shown, or would be if it took long enough."""
    found: list[str] = []
    bar, wait = progress._Bar.__init__, progress.Wait.__init__

    def begin_bar(self: progress._Bar, what: str, *rest: Any) -> None:
        found.append(what)
        bar(self, what, *rest)

    def begin_wait(self: progress.Wait, what: str, *rest: Any) -> None:
        wait(self, what, *rest)
        if self.pause() is not None:
            found.append(what)

    monkeypatch.setattr(progress._Bar, "__init__", begin_bar)
    monkeypatch.setattr(progress.Wait, "__init__", begin_wait)
    monkeypatch.setattr(progress, "shows_progress", _shown_on_a_terminal)
    return found


def _shown_on_a_terminal(*, quiet: bool = False) -> bool:
    return not (quiet or is_quiet() or prints_json())


@pytest.fixture
def files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands of the table work on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("x")
    one, two = make_image(400_000, seed=1), make_image(400_000, seed=2)
    (tmp_path / "two.img").write_bytes(two)
    (tmp_path / "packed.xz").write_bytes(lzma.compress(one))
    write_cloop_file(tmp_path / "one.cloop", one)
    write_cloop_file(tmp_path / "two.cloop", two)
    make_iso(tmp_path / "root.iso", {"etc/hostname": b"tiny"})
    root = write_cloop_file(tmp_path / "KNOPPIX", (tmp_path / "root.iso").read_bytes())
    make_iso(tmp_path / "knoppix.iso", {"KNOPPIX/KNOPPIX": root.read_bytes()})
    image = open_local(inspect_file(Path("one.cloop")), None, ignore)
    profile = Profile(image.image_id, image.size, 1, pack_touches([Touch(40, 3, 0)]))
    keep_profile(Home.at(home), pack_profile(profile))
    with Overlay.create(Path("mine.delta"), image_id=image.image_id, image_size=image.size) as made:
        made.write(4096, [memoryview(b"mine" * 1024)])
        made.prepare_flush()()
    image.close()


def inspect_id(name: str) -> bytes:
    """The id of the content of an image file."""
    image = open_local(inspect_file(Path(name)), None, ignore)
    image.close()
    return image.image_id


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests are played."""

    def no_guest(*_: object, **__: object) -> None:
        raise GuestError("no guest is booted here")

    guest = SimpleNamespace(stop=lambda _seconds: True)
    monkeypatch.setattr(stop, "GuestProcess", lambda _home, _name: nullcontext(guest))
    monkeypatch.setattr(importing, "run_unseen", no_guest)
    monkeypatch.setattr(rebase, "move_overlay", lambda _move, _choice: ([], True))
    held = SimpleNamespace(info=lambda: SimpleNamespace(image_id=inspect_id("one.cloop")))
    opened = SimpleNamespace(open=lambda *_, **__: nullcontext(held))
    monkeypatch.setattr(rebase, "Overlay", opened)
    monkeypatch.setattr(rebase, "made_on", lambda _overlay, _home: inspect_file(Path("one.cloop")))


@pytest.mark.usefixtures("files", "played")
@pytest.mark.parametrize("wish", ["", "--quiet"])
def test_what_may_take_long_is_shown(p2pcloop: Run, begun: list[str], wish: str) -> None:
    wrong = []
    try:
        for row in TABLE:
            begun.clear()
            ran = p2pcloop(*row.line.split(), *wish.split())
            missing = row.shows - set(begun) if not wish else set(begun)
            if ran.code != row.code or missing:
                wrong.append((row.line, ran.code, missing, set(begun), ran.err))
    finally:
        p2pcloop("daemon", "stop", "--force")
    assert not wrong, "\n".join(map(str, wrong))


def test_a_suspend_shows_what_it_waits_for(
    begun: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise GuestError("it does not go on")

    monkeypatch.setattr(rehearsal, "rehearse", fail)
    publisher: Any = SimpleNamespace(home=Home.at(home))
    manifest = SimpleNamespace(
        name="@key/state", version=1, image_id=bytes(32), size=1 << 20, machine=object()
    )
    state: Any = SimpleNamespace(signed=SimpleNamespace(manifest=manifest))
    with pytest.raises(GuestError):
        rehearsal.publish_rehearsed(publisher, state, "", public=False, quiet=False)
    assert begun == ["rehearsal 1 of 2"]
    assert "suspend" in control_client.AWAITED


def test_a_move_to_another_machine_shows_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "shows_progress", lambda: True)
    migrate._Host("there", "true", "p2pcloop", Home.at()).run(["fetch", "-"])
    assert capsys.readouterr().err == "waiting for `p2pcloop fetch` at there\n"


def answer_until(last: str, listener: socket.socket) -> None:
    """Answer the calls of a client, until it makes one of the operation `last`: then be gone."""
    receiver = ControlReceiver()
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(1000):
            for request in receiver.receive(data):
                assert isinstance(request, Request)
                if request.op == last:
                    return
                connection.sendall(encode(Reply(request.id, {"pid": 1, "position": 0})))


@pytest.fixture
def guest(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnGuest]:
    """One that runs."""
    monkeypatch.setattr(GuestProcess, "wait", lambda _process: True)
    Home.at(home).create()
    with OwnGuest(Home.at(home), "g1") as own:
        facts = {"image": "one", "version": 1, "overlay": None, "memory": 1 << 20}
        own.begin(ref="one", network="none", **facts)
        yield own


def test_nothing_is_drawn_within_what_a_guest_prints(
    p2pcloop: Run, begun: list[str], guest: OwnGuest
) -> None:
    guest.folder.log_path.write_bytes(b"login: ")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(guest.folder.socket_path))
        listener.listen()
        args = ("console_output", listener)
        server = threading.Thread(target=answer_until, args=args, daemon=True)
        server.start()
        assert p2pcloop("logs", "g1", "--follow").out == "login: "
        server.join(BOUND)
    assert begun == []


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_no_wait_is_drawn_for_the_next_status(
    begun: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, at_a_terminal: bool
) -> None:
    ours, theirs = socket.socketpair()
    theirs.shutdown(socket.SHUT_WR)  # it takes the call, and is gone
    monkeypatch.setattr(ControlClient, "connect", lambda _home: ControlClient(ours))
    monkeypatch.setattr("sys.stdout.isatty", lambda: at_a_terminal)
    with ours, theirs, pytest.raises(DaemonError, match="watch"):
        status.command.main(["--watch"], standalone_mode=False)
    assert begun == []


async def test_p2pcloopd_is_started_unseen_while_a_guest_runs(begun: list[str]) -> None:
    def start() -> None:
        with progress.waiting_for("p2pcloopd to start"):
            started.append(True)

    started: list[bool] = []
    node = with_block_server._Node(start)
    node.want()
    await node.run()
    assert (started, begun) == ([True], [])
