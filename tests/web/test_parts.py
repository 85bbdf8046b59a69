"""Parts of the page's process: text of consoles, words of commands, changes, and its end."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pcloop.cli.web import _way_to
from p2pcloop.errors import FormatError
from p2pcloop.store.home import Home
from p2pcloopd.log_output import LogOutput
from p2pcloopd.node import web_page
from p2pcloopd.node.web_page import WebPage
from p2pcloopd.web.console import plain_text, whole_characters
from p2pcloopd.web.http import Answer, Asked, Push, Viewers, serve
from p2pcloopd.web.jobs import command_of
from p2pcloopd.web.live import differences, encode_event
from p2pcloopd.web.process import _follow_the_node
from tests.support.waiting import BOUND


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[1;32mroot\x1b[0m@g1:~# ls\r\r\nfile\r\n", "root@g1:~# ls\nfile\n"),
        ("\x1b]0;a title\x07login: ", "login: "),
        ("\x1b]52;c;aGk=\x1b\\x\x1bP1$r\x1b\\y\x1b(Bz", "xyz"),
        ("10 %\r20 %\r30 %", "10 %\n20 %\n30 %"),
        ("\u202egpj.exe\x00\x9b2J <b>", "gpj.exe2J <b>"),
    ],
)
def test_a_page_shows_the_text_of_a_console(printed: str, shown: str) -> None:
    assert plain_text(printed) == shown


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = plain_text(text)
    assert all(char.isprintable() or char in "\n\t" for char in shown)


@given(st.text(), st.integers(0, 200))
def test_a_character_that_is_cut_waits_for_its_end(text: str, at: int) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    first, rest = whole_characters(data[:at])
    assert first + rest == data[:at]
    assert len(rest) < 4
    assert (first.decode() + (rest + data[at:]).decode()).encode() == data


WORDS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@given(WORDS, st.dictionaries(st.sampled_from(["name", "mem", "overlay"]), WORDS))
def test_what_a_user_typed_is_never_an_option(ref: str, given_: dict[str, str]) -> None:
    fields = dict.fromkeys(["name", "mem", "overlay", "net", "vm", "display"], "") | given_
    words, typed = command_of({"do": "boot", "ref": ref, **fields})
    assert (words[:2], words[-2:], typed) == (["boot", "--detach"], ["--", ref], "")
    assert words[2:-2] == [f"--{name}={value}" for name, value in fields.items() if value]
    for command in ("fetch", "pin", "unpin"):
        assert command_of({"do": command, "ref": ref}) == ([command, "--", ref], "")


def test_a_link_is_no_word_of_a_command() -> None:
    assert command_of({"do": "fetch-link", "ref": "magnet:?x"}) == (["fetch", "-"], "magnet:?x\n")


@pytest.mark.parametrize(
    "fields",
    [
        {"do": "exec"},
        {"do": "stop"},
        {"do": "stop", "name": "a\nb"},
        {"do": "pin", "ref": 1},
        {"do": "pin", "ref": "a", "more": "b"},
    ],
)
def test_other_requests_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        command_of(fields)


STATES = st.fixed_dictionaries(
    {"images": st.dictionaries(st.text(max_size=2), st.integers(0, 3)), "guests": st.integers(0, 2)}
)


@given(STATES, STATES)
def test_changes_lead_from_one_state_to_the_next(
    before: dict[str, Any], now: dict[str, Any]
) -> None:
    changes = differences(before, now)
    images = before["images"] | changes.pop("images", {})
    for name in changes.pop("gone", ()):
        del images[name]
    assert before | changes | {"images": images} == now


def test_an_event_is_one_line_whatever_strangers_wrote() -> None:
    event = encode_event("change", {"name": "a\n\nevent: state\ndata: {}"})
    assert event.count(b"\n") == 3
    assert event.endswith(b"\n\n")


async def test_the_process_ends_half_a_minute_after_the_last_browser(
    autojump_clock: trio.testing.MockClock,
) -> None:
    viewers = Viewers()

    async def look() -> None:
        await trio.sleep(20)
        viewers.count(1)
        await trio.sleep(3600)
        viewers.count(-1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await viewers.wait_gone(30)
    assert trio.current_time() == pytest.approx(3650)
    assert autojump_clock.jump is not None


async def test_a_bug_ends_one_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The process ended, and jobs lost their output."""
    hosts = ["127.0.0.1:1"]

    async def handle(asked: Asked) -> Answer:
        async def events(push: Push) -> None:
            await push(b"event")
            raise ValueError("a bug")

        return Answer(events) if asked.path == "events" else Answer(b"{}")

    async def ask(method: str, path: str) -> bytes:
        stream = await trio.testing.open_stream_to_socket_listener(listener)
        async with stream:
            head = f"{method} /token/{path} HTTP/1.1\r\nHost: {hosts[0]}\r\n\r\n"
            await stream.send_all(head.encode())
            await stream.send_eof()
            return b"".join([part async for part in stream])

    with trio.fail_after(BOUND):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, "token", hosts, handle, Viewers())
            assert (await ask("GET", "events")).endswith(b"event\r\n")
            assert (await ask("HEAD", "events")).startswith(b"HTTP/1.1 200")
            assert (await ask("GET", "image")).endswith(b"{}")
            nursery.cancel_scope.cancel()
    assert "a bug ends a connection" in caplog.text


async def test_a_page_that_does_not_start_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """p2pcloopd ended."""
    tries: list[float] = []

    async def refuse(*_: object, **__: object) -> None:
        tries.append(autojump_clock.current_time())
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(trio.lowlevel, "open_process", refuse)
    page = WebPage(Home(tmp_path), LogOutput(None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(page.run)
        await page.open()
        while not tries:
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2)
        await page.open()
        while len(tries) < 2:
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_the_process_logs_as_p2pcloopd_does_and_follows_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logged plain lines into a log of JSON."""
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    told = tmp_path / "told"
    os.mkfifo(told)
    twice = 'exec >"$1"; for _ in 1 2; do read -r line; echo "$line"; done'
    command = ["sh", "-c", twice, "sh", os.fspath(told)]
    monkeypatch.setattr(web_page, "module_command", lambda _module: command)
    log = LogOutput(None)
    log.set_up("debug", "json")
    page = WebPage(Home(tmp_path), log)
    await page.open()
    assert page._listener is not None
    with trio.fail_after(BOUND), page._listener as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(page._serve, listener.fileno())
            async with await trio.open_file(told) as lines:
                first = json.loads(await lines.readline())
                assert first["log"] == {"level": "debug", "form": "json"}
                log.set_up("warning", "lines")
                assert json.loads(await lines.readline())["log"]["form"] == "lines"


async def test_the_process_takes_over_the_settings_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    log = LogOutput(None)
    out, into = os.pipe()
    settings = b'{"log": {"level": "error", "form": "json"}}\n'
    os.write(into, settings + settings[:9])
    os.write(into, settings[9:])
    os.close(into)
    with trio.fail_after(BOUND), trio.CancelScope() as scope:
        await _follow_the_node(out, log, scope)
    os.close(out)
    assert log.settings() == {"level": "error", "form": "json"}


def test_a_browser_is_started_without_the_token_in_its_words(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/secret/"
    page = _way_to(url, Home(tmp_path))
    assert "secret" not in page.as_uri()
    assert url in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
