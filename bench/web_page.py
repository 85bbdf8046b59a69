"""The web page of a node with 500 images and 50 guests: its first view, and what it costs.

A browser opens the page and knows all images, of which it lists the first hundred; the bytes are
those that it received. Then it looks for ten seconds, at a node at rest; then it closes, and half a
minute later the page's process ends: so each first view begins with its start. The processor's time
is that of p2pcloopd and of that process, in percent of one core.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import daemon_pid, processor_seconds, run_json
from bench.start import children
from bench.startup import GUESTS, IMAGES, large_node
from p2pcloop.store.home import Home
from p2pcloopd.web.process import UNUSED_SECONDS

CHROMIUM = "/usr/bin/chromium-headless-shell"

_LOOK_SECONDS = 10.0
"""Five times of `LOOK_SECONDS`: more of them tell nothing else."""

_END_SECONDS = UNUSED_SECONDS + 15.0
"""Until the page's process has ended, behind the last browser; on a machine that is busy, too."""


def _page_process(daemon: int) -> int | None:
    for child in children(daemon):
        if b"p2pcloopd.web.process" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


def _share(pids: list[int], wait: Callable[[], None]) -> float:
    """Percent of a core that processes take meanwhile."""
    before, start = sum(map(processor_seconds, pids)), time.monotonic()
    wait()
    seconds = time.monotonic() - start
    return 100 * (sum(map(processor_seconds, pids)) - before) / seconds


def _wait_for_end(process: int) -> None:
    """Return once the page's process has ended.

    Raises:
        BenchError: it did not in time.
    """
    fd = os.pidfd_open(process)
    try:
        if not select.select([fd], [], [], _END_SECONDS)[0]:
            raise BenchError("the page's process has not ended")
    finally:
        os.close(fd)


def _look(browser: Browser, home: Home, url: str) -> Values:
    daemon = daemon_pid(home.root)
    page = browser.new_page()
    received = 0

    def count(event: dict[str, int]) -> None:
        nonlocal received
        received += event["dataLength"]

    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.dataReceived", count)
    start = time.monotonic()
    page.goto(url)
    page.get_by_role("button", name=f"Show all {IMAGES} images").wait_for()
    view, first = time.monotonic() - start, received
    process = _page_process(daemon)
    if process is None:
        raise BenchError("nothing serves the page")
    viewed = _share([daemon, process], lambda: time.sleep(_LOOK_SECONDS))
    memory = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    page.close()
    return {
        "view": view,
        "bytes": first / 1000,
        "viewed": viewed,
        "unviewed": _share([daemon], lambda: _wait_for_end(process)),
        "memory": memory / 1e6,
    }


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    with large_node(bench) as home, sync_playwright() as playwright:
        url = run_json([bench.p2pcloop, "web", "--json", "--home", home.root])["url"]
        options = ["--no-sandbox", "--disable-gpu"]  # its sandbox refuses root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield {"browser": lambda: _look(browser, home, url)}
        finally:
            browser.close()


WEB = Measure(
    "web",
    f"the web page of a node with {IMAGES} images and {GUESTS} guests",
    {"view": "s", "bytes": "kB", "viewed": "%", "unviewed": "%", "memory": "MB"},
    [
        Row("first view", ("browser", "view"), 1.0),
        Row("bytes of the first view", ("browser", "bytes"), 200),
        Row("one browser looks", ("browser", "viewed"), 5.0),
        Row("none looks: p2pcloopd alone", ("browser", "unviewed"), None),
        Row("memory of the page's process", ("browser", "memory"), None),
    ],
    _contenders,
)
