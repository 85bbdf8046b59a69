"""Commands on guests, which are played by records that this process holds."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.client.guests import GuestProcess
from p2pcloop.errors import BusyError, GuestError, NotHereError, StorageError, UsageError
from p2pcloop.store.guests import OwnGuest, list_guests
from p2pcloop.store.home import Home
from p2pcloopd.commands.logs import last_lines
from p2pcloopd.commands.start import _again
from tests.support.command import Run

KEY = "y" * 52
FACTS: dict[str, Any] = {
    "ref": "debian",
    "image": f"@{KEY}/debian",
    "version": 12,
    "overlay": "/home/me/overlays/mine.delta",
    "memory": 512 << 20,
    "network": "lan",
    "address": "10.88.0.12",
}

Begin = Callable[..., OwnGuest]


@pytest.fixture
def begin(home: Path) -> Iterator[Begin]:
    """Makes a guest that runs, and that is kept when it ends."""
    with ExitStack() as stack:

        def make(name: str, **facts: Any) -> OwnGuest:
            Home.at(home).create()
            own = stack.enter_context(OwnGuest(Home.at(home), name))
            own.begin(**FACTS | facts)
            own.keep()
            return own

        yield make


def end(own: OwnGuest) -> None:
    own.end(reason="poweroff", exit_code=0)
    own.close()


def names(home: Path) -> list[str]:
    return [guest.record.name for guest in list_guests(Home.at(home))]


def test_the_table_of_guests_fits_a_terminal(p2pcloop: Run, begin: Begin) -> None:
    begin("g1")
    begin("file", image="/a/long/way/to/the/images/debian.cloop", version=None, overlay=None)
    ran = p2pcloop("ps")
    head, first, second = ran.out.splitlines()
    assert max(map(len, (head, first, second))) <= 100
    assert " @yyyyyyyy/debian 12  mine.delta  536.9 MB  lan 10.88.0.12  -        up " in first
    assert second.split()[:3] == ["file", "debian.cloop", "-"]
    [told, _] = p2pcloop("ps", "--json").json["guests"]
    assert (told["image"], told["overlay"]) == (FACTS["image"], FACTS["overlay"])


@pytest.mark.parametrize("option", ["-a", "--all"])
def test_all_guests_are_listed(p2pcloop: Run, begin: Begin, option: str) -> None:
    end(begin("g1"))
    assert p2pcloop("ps").out.startswith("no guest runs here")
    assert "shut down (0)" in p2pcloop("ps", option).out


def test_all_that_have_ended_are_forgotten(p2pcloop: Run, begin: Begin, home: Path) -> None:
    for name in ("g1", "g2"):
        end(begin(name))
    begin("g3")
    assert p2pcloop("rm", "--guest", "--all").out.splitlines() == [
        "the guest g1 is forgotten",
        "the guest g2 is forgotten",
    ]
    assert names(home) == ["g3"]
    assert p2pcloop("rm", "--guest", "--all").out == "no guest that has ended is kept here\n"
    assert p2pcloop("rm", "--guest", "g3").code == BusyError.exit_code


def test_a_guest_is_not_removed_as_an_image_but_told_how(p2pcloop: Run, begin: Begin) -> None:
    end(begin("g1"))
    for name, told in (("g1", True), ("g2", False)):
        ran = p2pcloop("rm", name)
        assert ran.code == NotHereError.exit_code
        assert (f"hint: {name} is a guest: `p2pcloop rm --guest {name}`" in ran.err) is told


@pytest.mark.parametrize(
    ("facts", "ended", "told"),
    [
        ({"words": ["debian"]}, "poweroff", "is a guest that has ended: `p2pcloop start g1` boots"),
        ({}, "poweroff", "is a guest that has ended: `p2pcloop logs g1` shows"),
        ({}, "suspended", "is a guest that is suspended: `p2pcloop resume g1` lets"),
        ({}, None, "is a guest that runs: `p2pcloop attach g1` leads"),
    ],
)
def test_a_guest_is_no_image_but_it_is_told_what_leads_to_it(
    p2pcloop: Run, begin: Begin, facts: dict[str, Any], ended: str | None, told: str
) -> None:
    own = begin("g1", **facts)
    if ended is not None:
        own.end(reason=ended, exit_code=0)
        own.close()
    for command in ("boot", "info"):
        ran = p2pcloop(command, "g1")
        assert ran.code == NotHereError.exit_code
        assert f"hint: g1 {told}" in ran.err


def test_a_guest_that_was_not_suspended_is_not_resumed(p2pcloop: Run, begin: Begin) -> None:
    end(begin("g1", words=["debian"]))
    ran = p2pcloop("resume", "g1")
    assert ran.code == UsageError.exit_code
    assert "the guest g1 was not suspended" in ran.err
    assert "`p2pcloop start g1` boots it again" in ran.err


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"reason": "suspended"}, "the guest g1 is suspended\n  hint: `p2pcloop resume g1`"),
        (
            {"reason": "moved", "host": "there"},
            "does not run here\n  hint: it was moved, and goes on",
        ),
        ({"reason": "poweroff"}, "the guest g1 does not run\n  hint: `p2pcloop logs g1`"),
    ],
)
@pytest.mark.parametrize("words", [("stop",), ("suspend",), ("attach",), ("cp", "a", "g1:/b")])
def test_a_guest_that_does_not_run_is_told_with_what_became_of_it(
    p2pcloop: Run, begin: Begin, words: tuple[str, ...], facts: dict[str, Any], told: str
) -> None:
    own = begin("g1")
    own.end(exit_code=0, **facts)
    own.close()
    ran = p2pcloop(*words, *(["g1"] if len(words) == 1 else []))
    assert ran.code == GuestError.exit_code
    assert told in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("rm",),
        ("rm", "--guest"),
        ("rm", "--all"),
        ("rm", "--guest", "--all", "g1"),
        ("rm", "--guest", "--all", "--published"),
        ("stop",),
        ("stop", "--all", "g1"),
    ],
)
def test_which_guests_are_meant_must_be_said(
    p2pcloop: Run, begin: Begin, home: Path, words: tuple[str, ...]
) -> None:
    end(begin("g1"))
    ran = p2pcloop(*words)
    assert ran.code == UsageError.exit_code
    assert "hint: " in ran.err
    assert names(home) == ["g1"]


def test_all_that_run_are_stopped(
    p2pcloop: Run, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(begin("g0"))
    running = {name: begin(name) for name in ("g1", "g2")}

    def shut_down(process: GuestProcess, number: signal.Signals) -> None:
        assert number == signal.SIGTERM
        end(running[process.name])

    monkeypatch.setattr(GuestProcess, "signal", shut_down)
    monkeypatch.setattr(GuestProcess, "wait", lambda _process, _seconds: True)
    assert p2pcloop("stop", "--all").out == "g1 has shut down\ng2 has shut down\n"
    assert p2pcloop("stop", "--all").out == "no guest runs here\n"


@pytest.mark.parametrize(
    ("facts", "code", "hint"),
    [
        ({}, UsageError.exit_code, "p2pcloop boot debian --name g1 --replace"),
        (
            {"words": ["debian"], "directory": "/"},
            NotHereError.exit_code,
            "boot ... --name g1 --replace` begins with a new one",
        ),
        (
            {"words": ["debian"], "directory": "/no/such", "overlay": None},
            StorageError.exit_code,
            "",
        ),
    ],
    ids=["of an older version", "its overlay is gone", "its directory is gone"],
)
def test_a_guest_that_cannot_be_started_again_stays_as_it_was(
    p2pcloop: Run, begin: Begin, home: Path, facts: dict[str, Any], code: int, hint: str
) -> None:
    end(begin("g1", **facts))
    before = list_guests(Home.at(home))
    ran = p2pcloop("start", "g1")
    assert (ran.code, ran.out) == (code, "")
    assert hint in ran.err
    assert list_guests(Home.at(home)) == before


def test_one_that_runs_is_not_started(p2pcloop: Run, begin: Begin) -> None:
    begin("g1")
    ran = p2pcloop("start", "g1")
    assert ran.code == BusyError.exit_code
    assert "the guest g1 runs" in ran.err
    assert p2pcloop("start", "g2").code == NotHereError.exit_code


def test_a_guest_is_started_with_the_words_that_it_was_booted_with(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    own = ["--name", "g1", "--home", str(tmp_path), "--detach", "--console", "stdio"]
    words = ["--mem", "1G"]
    assert _again([*words, "debian"], "g1", home, None) == [*words, "debian", *own]
    assert _again([*words, "--", "-x"], "g1", home, None) == [*words, *own, "--", "-x"]
    assert _again(words, "g1", home, 2) == [*words, *own, "--at", "2"]


def test_the_last_lines_of_a_log(p2pcloop: Run, begin: Begin) -> None:
    own = begin("g1")
    own.folder.old_log_path.write_bytes(b"one\ntwo\n")
    own.folder.log_path.write_bytes(b"three\nlogin: ")
    assert p2pcloop("logs", "g1", "-n", "3").out == "two\nthree\nlogin: "
    assert p2pcloop("logs", "g1", "--lines", "9").out == "one\ntwo\nthree\nlogin: "
    assert p2pcloop("logs", "g1").out == "one\ntwo\nthree\nlogin: "


@pytest.mark.parametrize(
    ("data", "lines", "shown"),
    [
        (b"a\nb\n", 1, b"b\n"),
        (b"a\nb", 1, b"b"),
        (b"a\n\n", 1, b"\n"),
        (b"\n", 1, b"\n"),
        (b"\na", 2, b"\na"),
        (b"a\nb\n", 0, b""),
        (b"", 3, b""),
        (b"a\nb\n", None, b"a\nb\n"),
    ],
)
def test_lines_from_the_end(data: bytes, lines: int | None, shown: bytes) -> None:
    assert last_lines(data, lines) == shown


@pytest.mark.parametrize(
    ("display", "lines"),
    [
        (
            {"kind": "vnc", "address": "127.0.0.1:5901", "password": "k3"},
            [
                "display: vncviewer -passwd {home}/guests/g1/vnc-password 127.0.0.1:5901",
                "display: its password, for other viewers: k3",
            ],
        ),
        (
            {"kind": "web", "address": "127.0.0.1:5901", "password": "k3", "link": "http://x/#p"},
            ["display: open http://x/#p"],
        ),
        ({"kind": "window", "address": ":0", "password": None}, ["display: a window on :0"]),
    ],
)
def test_how_to_open_a_display_is_told_again(
    p2pcloop: Run, begin: Begin, home: Path, display: dict[str, Any], lines: list[str]
) -> None:
    begin("g1", display=display)
    told = p2pcloop("display", "g1").out.splitlines()
    assert told == [line.format(home=home) for line in lines]
    assert p2pcloop("display", "g1", "--json").json == display


def test_a_guest_without_a_display(p2pcloop: Run, begin: Begin) -> None:
    own = begin("g1")
    assert p2pcloop("display", "g1").code == GuestError.exit_code
    end(own)
    assert "does not run" in p2pcloop("display", "g1").err


def test_a_terminal_for_a_command_is_refused_with_what_gives_one(p2pcloop: Run) -> None:
    ran = p2pcloop("exec", "-it", "g1", "--", "bash")
    assert ran.code == UsageError.exit_code
    assert "`p2pcloop attach g1`" in ran.err


def test_a_guest_that_is_not_there(p2pcloop: Run) -> None:
    assert p2pcloop("logs", "g1", "-n", "3").code == NotHereError.exit_code
