"""The page of a node: who may ask, what is told, what buttons do, and that it ends."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import NotHereError
from p2pcloop.store.guests import OwnGuest
from tests.support.images import write_cloop_file
from tests.support.programs import Node, Nodes, Process, descendants
from tests.support.waiting import wait_until
from tests.support.web_page import Page

RAW = random.Random(7).randbytes(4096 * 200)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.start()


@pytest.fixture(scope="module")
def page(node: Node) -> Page:
    return Page(node.json("web")["url"])


def web_processes(node: Node) -> list[Process]:
    """The processes that serve the page."""
    pid = node.home.holder()
    assert pid is not None
    found = []
    for each in descendants(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended just now
            if b"p2pcloopd.web.process" in Path(f"/proc/{each.pid}/cmdline").read_bytes():
                found.append(each)
    return found


def test_it_runs_while_it_is_asked_for_and_ends_with_p2pcloopd(nodes: Nodes) -> None:
    node = nodes.start()
    assert web_processes(node) == []
    url = node.json("web")["url"]
    assert node.run("web").out == url + "\n"
    assert url.startswith("http://127.0.0.1:")
    page = Page(url)
    status, _, body = page.ask("")
    assert (status, b">p2pcloop</title>" in body) == (200, True)
    [first] = web_processes(node)
    first.kill()
    assert page.ask("")[0] == 200
    [second] = web_processes(node)
    node.end(signal.SIGKILL)
    wait_until(lambda: not second.runs(), "the page's process outlives p2pcloopd")
    with pytest.raises(ConnectionRefusedError):
        page.ask("")


def test_only_who_has_the_token_and_names_this_machine_is_answered(page: Page) -> None:
    for path in ("/", page.path[:-2] + "/", page.path[:-1], page.path.upper(), "//"):
        assert page.ask(path, absolute=True)[0] == 404
    port = page.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        assert page.ask("", headers={"Host": host})[0] == 421
    assert page.ask("", headers={"Host": f"localhost:{port}"})[0] == 200
    assert page.ask("", "PUT")[0] == 405
    assert page.ask("no-such-file")[0] == 404
    assert page.ask("../process.py")[0] == 404


def test_a_post_comes_from_this_page_alone(page: Page) -> None:
    press = {"do": "stop", "name": "none"}
    assert page.post("act", press, Origin="http://evil.example")[0] == 403
    assert page.post("act", press, Origin="null")[0] == 403
    assert page.post("act", press, Content_Type="text/plain")[0] == 403
    assert page.post("act", press, Sec_Fetch_Site="cross-site")[0] == 403
    assert page.ask("act", "POST", {"Content-Type": "application/json"}, b"{}")[0] == 403
    assert page.ask("act")[0] == 404
    wrong: Any
    for wrong in ({}, [], {"do": "rm"}, {"do": "fetch", "ref": " "}):
        status, told = page.post("act", wrong)
        assert (status, told["class"]) == (400, "FormatError")


def test_who_reads_japanese_gets_the_page_and_its_errors_in_japanese(page: Page) -> None:
    japanese = {"Accept-Language": "ja,en-US;q=0.7,en;q=0.3"}
    assert '<html lang="ja">' in page.ask("", headers=japanese)[2].decode()
    english, told = (
        json.loads(page.ask("console?guest=none", headers=headers)[2])
        for headers in ({"Accept-Language": "fr, en;q=0.5, ja;q=0.1"}, japanese)
    )
    assert english["error"] == "there is no guest none"
    assert "ゲスト none" in told["error"]
    assert told["class"] == english["class"]


def test_every_answer_forbids_what_comes_from_elsewhere(page: Page) -> None:
    for path in ("", "page.js", "nothing", "image"):
        _, headers, _ = page.ask(path)
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert not {"Set-Cookie", "Access-Control-Allow-Origin"} & headers.keys()


def test_the_token_is_in_no_log_and_in_no_word_of_a_process(node: Node, page: Page) -> None:
    token = page.path.strip("/").encode()
    page.ask("image")
    assert token not in node.home.log.read_bytes()
    pid = node.home.holder()
    assert pid is not None
    for process in descendants(pid):
        for name in ("cmdline", "environ"):
            assert token not in Path(f"/proc/{process.pid}/{name}").read_bytes()


def state_until(page: Page, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Follow the page's state until it is as wanted."""
    state: dict[str, Any]
    with page.events() as events:
        _, state = next(events)
        while not done(state):
            _, change = next(events)
            state["images"] |= change.pop("images", {})
            for name in change.pop("gone", ()):
                del state["images"][name]
            state |= change
    return state


def ended_job(page: Page, number: int) -> dict[str, Any]:
    """A job that a button started, once it has ended."""

    def job(state: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in state["jobs"] if each["id"] == number)
        return found

    return job(state_until(page, lambda state: job(state)["code"] is not None))


def test_the_state_follows_what_happens(
    nodes: Nodes, node: Node, page: Page, tmp_path: Path
) -> None:
    """An image is fetched and pinned by button; its map and its facts are told."""
    seeder = nodes.make()
    published = seeder.seed(write_cloop_file(tmp_path / "disk.cloop", RAW))
    name, link = published["name"], published["link"]
    status, told = page.post("act", {"do": "fetch-link", "ref": link})
    assert status == 200
    job = ended_job(page, told["job"])
    assert (job["what"], job["code"]) == ("p2pcloop fetch -", 0)
    assert link not in json.dumps(job)

    def is_here(state: dict[str, Any]) -> bool:
        image = state["images"].get(name)
        return image is not None and image["here"] == image["size"] > len(RAW) // 2

    state = state_until(page, is_here)
    assert state["node"]["home"] == str(node.root)
    assert sum(peer["received"] for peer in state["peers"]) > len(RAW) // 2
    page.post("act", {"do": "pin", "ref": name})
    facts = json.loads(page.ask(f"image?name={name}")[2])
    assert (facts["version"], facts["ours"]) == (1, False)
    state_until(page, lambda state: facts["manifest"] in state["pinned"])
    panels = json.loads(page.ask(f"map?name={name}")[2])["panels"]
    assert [panel["title"] for panel in panels] == ["What is here", "Who sent it"]
    node.run("unpin", name)
    node.run("rm", name)
    state_until(page, lambda state: name not in state["images"])


def test_a_browser_that_goes_and_a_guest_that_is_not_there_end_nothing(
    node: Node, page: Page
) -> None:
    page.ask("")  # it begins with the first request
    [before] = web_processes(node)
    assert page.ask("console?guest=none")[0] == 409
    assert page.ask("timeline?guest=none")[0] == 409
    assert page.post("type", {"guest": "none", "text": "x"})[0] == 409
    for path in ("events", "console?guest=g1"):
        with OwnGuest(node.home, "g1") as guest:
            facts = {"overlay": None, "memory": 1, "network": "none"}
            guest.begin(ref="x", image="x", version=None, **facts)
            page.hang_up(path)
    state_until(page, lambda state: state["guests"] == [])
    assert web_processes(node) == [before]


def test_a_job_that_fails_says_why(page: Page) -> None:
    """What looks like an option is none."""
    _, told = page.post("act", {"do": "pin", "ref": "--help"})
    job = ended_job(page, told["job"])
    assert job["code"] == NotHereError.exit_code
    assert "there is no file --help" in job["said"]
