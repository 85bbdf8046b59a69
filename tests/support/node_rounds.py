"""Rounds of suspend and resume between two nodes, whose p2pcloopd is killed meanwhile.

In each round the guest goes on at the node that has not its last state, and fetches that from the
other one. All that is in it is checked, it writes to its memory and to its disk, and is suspended
there. It is moved by commands as a user gives them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.support.programs import GUEST_OPTIONS, Node
from tests.support.suspend_rounds import COUNTING, NOISE_SIZE
from tests.support.waiting import BOUND

NodeEvent = Literal[
    "none", "kill who fetches", "kill who serves", "kill p2pcloopd at suspend", "kill the guest"
]
NODE_EVENTS: tuple[NodeEvent, ...] = (
    "none", "kill who fetches", "kill who serves", "kill p2pcloopd at suspend", "kill the guest",
)  # fmt: skip

_NAME = "g"
_TRIES = 5


@dataclass(frozen=True)
class Left:
    """A guest that is suspended.

    Attributes:
        node: has its state.
        link: to the state.
        digests: what md5sum says of /tmp/noise and /root/noise.
        count: how far a loop was that runs in the guest.
    """

    node: Node
    link: str
    digests: str
    count: int


def begin(node: Node, image: Path) -> Left:
    """Boot a guest, have it write and count, and suspend it."""
    node.seed(image, "tiny")
    node.run("boot", "tiny", "--vm", "qemu", *GUEST_OPTIONS, "--name", _NAME, "--detach")
    loop = f"setsid sh -c '{COUNTING}' </dev/null >/dev/null 2>&1 &"
    _sh(node, f"mount -t tmpfs none /tmp; {loop}", "--wait", f"{BOUND:g}")
    digests = _write(node)
    return _suspended(node, digests, _count(node))


def run_node_rounds(
    nodes: tuple[Node, Node],
    left: Left,
    events: Iterable[NodeEvent],
    delay: Callable[[], float],
) -> Iterator[NodeEvent]:
    """Run a round for each event; an assertion fails where anything is lost or wrong.

    Args:
        nodes: one of them has the state.
        left: what the first round goes on from.
        delay: seconds from the start of a command to the kill.
    """
    for event in events:
        here = nodes[nodes.index(left.node) - 1]
        left = _round(here, left, event, delay) or left
        yield event


def _round(here: Node, left: Left, event: NodeEvent, delay: Callable[[], float]) -> Left | None:
    """One round; None if its guest was killed before it was suspended."""
    victims = {"kill who fetches": here, "kill who serves": left.node}
    with _killed(victims.get(event), delay()):
        key = left.link.partition("x.p2pcloop=")[2].partition("/")[0]
        words = ("--trust", key, "--name", _NAME, "--replace", "--detach")
        _until_done(here, "resume", left.link, *words)
        assert _digests(here) == left.digests
        count = _count(here)
        assert count >= left.count
    assert _digests(here) == left.digests
    digests = _write(here)
    if event == "kill the guest":
        here.kill_guest(_NAME)
        return None
    with _killed(here if event == "kill p2pcloopd at suspend" else None, delay()):
        return _suspended(here, digests, count)


def _suspended(node: Node, digests: str, count: int) -> Left:
    """Suspend the guest; if that fails it goes on, has all that it had, and is suspended again."""
    for _ in range(_TRIES):
        try:
            made = node.json("suspend", _NAME)
        except AssertionError:
            assert _digests(node) == digests
            assert _count(node) >= count
        else:
            return Left(node, made["link"], digests, count)
    raise AssertionError("it cannot be suspended")


def _until_done(node: Node, *words: str) -> None:
    """Run a command whose p2pcloopd may be killed meanwhile: then it is given once more."""
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            node.run(*words)
        except AssertionError:
            if last:
                raise
        else:
            return


@contextmanager
def _killed(node: Node | None, delay: float) -> Iterator[None]:
    """Kill a node's p2pcloopd, if one is given, while the context lasts, and start it again."""

    def kill(node: Node) -> None:
        time.sleep(delay)
        if node.home.holder() is not None:
            node.signal(signal.SIGKILL)
        node.run("daemon", "start")

    with ThreadPoolExecutor(1) as pool:
        killing = None if node is None else pool.submit(kill, node)
        yield
        if killing is not None:
            killing.result()


def _sh(node: Node, script: str, *options: str) -> str:
    return node.run("exec", _NAME, *options, "--", "sh", "-c", script).out


def _write(node: Node) -> str:
    for place in ("/tmp", "/root"):
        _sh(node, f"head -c {NOISE_SIZE} /dev/urandom >{place}/noise")
    _sh(node, "sync")
    return _digests(node)


def _digests(node: Node) -> str:
    return _sh(node, "echo 3 >/proc/sys/vm/drop_caches; md5sum /tmp/noise /root/noise")


def _count(node: Node) -> int:
    return int(_sh(node, "cat /tmp/count"))
