"""How far a command is, in numbers that are right."""

from __future__ import annotations

import io
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.invocation import JSON, QUIET
from p2pcloop.client.progress import Pace, Wait, growth_bar, progress_bar, waiting_for
from p2pcloop.client.terminal import notify, warn
from p2pcloop.protocol.control import ControlReceiver, Reply, Request, encode
from tests.support.command import Run
from tests.support.waiting import wait_until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown from the beginning on."""
    monkeypatch.setattr("p2pcloop.client.progress.DELAY_SECONDS", 0.0)


def test_what_is_left_follows_the_rate_of_late() -> None:
    clock = Clock()
    pace = Pace(clock)
    total = 100_000_000
    assert pace.tell(0, total) == ""
    for second in range(1, 11):  # 5 MB/s
        clock.now = second
        told = pace.tell(second * 5_000_000, total)
    assert told == "5.0 MB/s, 0:00:10 left"
    for second in range(11, 31):  # a tenth of it
        clock.now = second
        told = pace.tell(50_000_000 + (second - 10) * 500_000, total)
    assert told == "500.0 kB/s, 0:01:20 left"


def test_a_standstill_is_told_and_no_old_guess_stays() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.tell(0, 1000)
    clock.now = 2
    assert "left" in pace.tell(500, 1000)
    for second in range(3, 20):
        clock.now = second
        told = pace.tell(500, 1000)
    assert told == "nothing for 10 s"


def test_the_end_is_no_guess() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.tell(0, 1000)
    clock.now = 2
    assert "left" not in pace.tell(1000, 1000)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_ends_at_the_whole_where_all_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is skipped (holes, what is here already), and no call says that it is done."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("reading") as show:
        show(0, 1000)
        show(210)
    assert "100%" in terminal.getvalue().splitlines()[-1]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyError), progress_bar("reading") as show:
        show(210, 1000)
        raise KeyError
    assert "100%" not in terminal.getvalue()


def frames(terminal: Terminal) -> list[str]:
    """What a bar drew, one after the other."""
    return [each for each in terminal.getvalue().split("\r\033[K") if "%" in each]


def test_a_bar_is_drawn_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("reading", clock=clock) as show:
        for done in range(1000):  # 10 s
            clock.now = done / 100
            show(done, 1000)
    drawn = frames(terminal)
    assert 90 <= len(drawn) <= 103
    assert "50%" in "".join(drawn)
    assert "100%" in drawn[-1]


def test_what_was_told_last_is_drawn_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyError), progress_bar("reading", clock=Clock()) as show:
        show(0, 1000)
        show(770)
        raise KeyError
    assert "77%" in frames(terminal)[-1]


def test_a_bar_without_a_total_claims_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("unpacking") as show:
        show(1_000_000)
        show(210_000_000)
        assert "%" not in terminal.getvalue()
    assert "unpacking  210.0 MB" in terminal.getvalue()


@pytest.mark.parametrize("words", [("verify",), ("export", "-"), ("diff", "a.img")])
def test_what_reads_a_file_tells_first_how_much_there_is(
    p2pcloop: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    told: list[tuple[int, ...]] = []

    @contextmanager
    def bar(what: str, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
        yield lambda *numbers: told.append(numbers)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.img").write_bytes(bytes(8192))
    command, *rest = words
    out = [tmp_path / "out" if word == "-" else word for word in rest]
    monkeypatch.setattr(f"p2pcloop.cli.{command}.progress_bar", bar)
    assert p2pcloop(command, "a.img", *out).code == 0
    assert told[0] == (0, 8192)


def test_peers_are_told_beside_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("fetching", clock=clock) as show:
        show(0, 1000, "1 peer")
        clock.now = 2
        show(500, 1000, "3 peers")
        clock.now = 3
        show(600)
    assert "250 bytes/s, 0:00:02 left, 3 peers" in terminal.getvalue()
    assert "200 bytes/s, 0:00:02 left, 3 peers" in terminal.getvalue()


def test_quiet_leaves_out_progress_and_remarks_but_no_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with click.Context(click.Command("fetch")) as context:
        context.meta[QUIET] = True
        with progress_bar("fetching") as show:
            show(1, 2, "1 peer")
        notify("a remark")
        warn("a warning")
    notify("another remark")
    assert terminal.getvalue() == "a warning\nanother remark\n"


def test_what_is_over_soon_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("p2pcloop.client.progress.DELAY_SECONDS", 5.0)
    with progress_bar("reading", clock=clock) as show:
        show(0, 1000)
        clock.now = 4.9
        show(1000)
    assert terminal.getvalue() == ""
    with progress_bar("reading", clock=clock) as show:
        clock.now = 9.9
        show(500, 1000)
        assert " 50%" in terminal.getvalue()


def test_a_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    with progress_bar("fetching") as show:
        show(1, 2, "from very many peers")
    assert max(map(len, frames(terminal))) <= 40


def test_a_file_that_grows_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    path = tmp_path / "file"
    with growth_bar("joining", path):
        path.write_bytes(b"x" * 200_000)
        wait_until(lambda: "kB" in terminal.getvalue())
    assert "joining" in terminal.getvalue()


def test_a_wait_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with waiting_for("the disk"):
        wait_until(lambda: "waiting for the disk, " in terminal.getvalue())
    assert terminal.getvalue().endswith("\r\033[K")


def test_a_wait_stands_beside_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("writing") as show:
        show(500, 1000)
        with waiting_for("the disk"):
            wait_until(lambda: "50%  waiting for the disk" in terminal.getvalue())
    assert "100%" in frames(terminal)[-1]
    assert "disk" not in frames(terminal)[-1]


def test_a_remark_takes_the_place_of_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    wait = Wait("the image")
    wait.draw()
    notify("no peer answers")
    assert terminal.getvalue().endswith("waiting for the image, 0 s\r\033[Kno peer answers\n")


def test_a_call_tells_what_is_waited_for_until_the_answer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    ours, theirs = socket.socketpair()

    def answer() -> None:
        [request] = ControlReceiver().receive(theirs.recv(1000))
        assert isinstance(request, Request)
        wait_until(lambda: "waiting for room on the disk" in terminal.getvalue())
        theirs.sendall(encode(Reply(request.id, {"left": 7})))

    with ours, theirs:
        server = threading.Thread(target=answer)
        server.start()
        assert ControlClient(ours).call("gc") == {"left": 7}
        server.join()
    assert terminal.getvalue().endswith("\r\033[K")


@pytest.mark.parametrize("wish", [QUIET, JSON])
def test_nothing_is_shown_where_it_is_not_wanted(
    wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with click.Context(click.Command("fetch")) as context:
        context.meta[wish] = True
        with growth_bar("joining", tmp_path), progress_bar("reading") as show:
            show(1, 2)
        with waiting_for("the disk"):
            assert Wait("the image").pause() is None
    assert terminal.getvalue() == ""
