"""How long `p2pcloop --help`, `p2pcloop ps` and `p2pcloop status` take."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.processes import fresh_node, run
from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.image_file import open_image_file
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.seed import seed_image
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.home import Home

GUESTS = 50
_RUNNING = 40
IMAGES = 500
_IMAGE_SIZE = 1 << 16


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    def help_text() -> Values:
        return _timed(bench, "--help")

    help_text()  # compiles modules that were never imported
    yield {"p2pcloop": help_text}


@contextmanager
def _with_guests(bench: Bench) -> Iterator[Contenders]:
    home = Home.at(bench.work / "home")
    home.create()

    def list_all() -> Values:
        return _timed(bench, "ps", "--all", "--home", str(home.root))

    with ExitStack() as stack:
        for number in range(GUESTS):
            _make_guest(stack, home, number, running=number < _RUNNING)
        list_all()
        yield {"p2pcloop": list_all}


@contextmanager
def large_node(bench: Bench) -> Iterator[Home]:
    """A node that runs, with `IMAGES` images and `GUESTS` guests."""
    with fresh_node(bench, "node") as root, ExitStack() as stack:
        home = Home.at(root)
        run([bench.p2pcloop, "daemon", "start", "--home", root])
        _seed_images(home, bench.work / "image")
        for number in range(GUESTS):
            _make_guest(stack, home, number, running=True)
        yield home


@contextmanager
def _with_images(bench: Bench) -> Iterator[Contenders]:
    with large_node(bench) as home:

        def show() -> Values:
            return _timed(bench, "status", "--home", str(home.root))

        show()
        yield {"p2pcloop": show}


def _seed_images(home: Home, file: Path) -> None:
    with ControlClient.connect(home) as client:
        for number in range(IMAGES):
            file.write_bytes(random.Random(number).randbytes(_IMAGE_SIZE))
            image = open_image_file(file, home, quiet=True)
            with Publisher.of(home, client, f"image-{number}", None) as publisher:
                seed_image(image, publisher, quiet=True)


def _make_guest(stack: ExitStack, home: Home, number: int, *, running: bool) -> None:
    """A record as a guest's process writes it, whose lock this process holds if it runs."""
    own = stack.enter_context(OwnGuest(home, f"guest-{number}"))
    facts = {"ref": "debian", "image": f"@{'a' * 52}/debian", "version": 1, "overlay": None}
    own.begin(**facts, memory=512 << 20, network="user", ports=["2222:22"])
    own.keep()
    own.folder.waiting_path.write_text("no peer reachable; tried: 192.0.2.1:6881\n")
    if not running:
        own.end(reason="poweroff", exit_code=0, fetched=1 << 20)
        own.close()


def _timed(bench: Bench, *words: str) -> Values:
    start = time.monotonic()
    run([bench.p2pcloop, *words])
    return {"seconds": time.monotonic() - start}


HELP = Measure(
    "help",
    "p2pcloop --help",
    {"seconds": "s"},
    [Row("p2pcloop --help", ("p2pcloop", "seconds"), 0.2)],
    _contenders,
)

PS = Measure(
    "ps",
    f"p2pcloop ps --all, of {GUESTS} guests, of which {_RUNNING} run",
    {"seconds": "s"},
    [Row("p2pcloop ps", ("p2pcloop", "seconds"), 0.3)],
    _with_guests,
)

STATUS = Measure(
    "status",
    f"p2pcloop status, of {IMAGES} images and {GUESTS} guests that run",
    {"seconds": "s"},
    [Row("p2pcloop status", ("p2pcloop", "seconds"), 0.3)],
    _with_images,
)
