"""Images of a mount: openings that fail or are given up, and those that come after."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.manifest import Manifest, SignedManifest, open_manifest, sign_manifest
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE
from p2pcloop.store.home import Home
from p2pcloopd.entry import allow_many_files
from p2pcloopd.mount import images as module
from p2pcloopd.mount.images import MAX_LINGERING, Images
from tests.support.images import StoredLayer, make_image
from tests.support.waiting import BOUND, until

CONTENT = make_image(1 << 20)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    return home


class Client:
    """A connection to a p2pcloopd that knows nothing."""

    async def call(self, op: str, *_: object, **__: object) -> dict[str, Any]:
        raise P2pcloopError(f"{op}: it is not known")


def signed(*layers: StoredLayer, size: int = len(CONTENT)) -> SignedManifest:
    manifest = Manifest(
        key=KEY.public_key().public_bytes_raw(),
        label="image",
        version=1,
        created=0,
        size=size,
        layers=tuple(layer.ref for layer in layers),
    )
    return open_manifest(sign_manifest(manifest, KEY))


def open_files(home: Home) -> set[str]:
    """The files of a home that this process has open or mapped."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it is of the listing itself
            links.append(str(fd.readlink()))
    links += [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return {link for link in links if link.startswith(str(home.root))}


async def given_up(hold: Callable[[], Awaitable[object]]) -> None:
    """Begin to open an image, and give up once the opening waits for bytes."""
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await hold()
                raise AssertionError("it is open already")

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()


async def test_an_opening_that_was_given_up_is_not_what_the_next_reader_gets(home: Home) -> None:
    """Its end takes a while; a reader that comes meanwhile has the image opened anew."""
    layer = StoredLayer(home.torrents, CONTENT)
    image = signed(layer)
    async with trio.open_nursery() as nursery:
        images = Images(home, Client(), nursery, home.root)
        await given_up(lambda: images.hold(image, None))
        layer.store(range(layer.pieces))
        with trio.fail_after(BOUND):
            held = await images.hold(image, None)
        data = bytearray(4096)
        held.device.read_into(0, (memoryview(data),))
        assert data == CONTENT[:4096]
        held.release()
        nursery.cancel_scope.cancel()
    layer.have.close()


async def test_an_opening_that_was_given_up_leaves_no_files_open(home: Home) -> None:
    layer = StoredLayer(home.torrents, CONTENT)
    absent = StoredLayer(home.torrents, make_image(1 << 20, seed=2), bytes(20))
    image = signed(layer, absent)
    layer.store(range(layer.pieces))
    before = open_files(home)
    async with trio.open_nursery() as nursery:
        images = Images(home, Client(), nursery, home.root)
        for _ in range(3):
            await given_up(lambda: images.hold(image, None))
            await until(lambda: open_files(home) == before)
        nursery.cancel_scope.cancel()
    layer.have.close()
    absent.have.close()


async def test_a_bug_in_an_opening_is_told_to_its_readers_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    layer = StoredLayer(home.torrents, CONTENT)
    image = signed(layer)
    layer.store(range(layer.pieces))
    async with trio.open_nursery() as nursery:
        images = Images(home, Client(), nursery, home.root)
        with monkeypatch.context() as patch:
            patch.setattr(module, "open_disk", broken)
            with pytest.raises(P2pcloopError, match="cannot be read: a bug"):
                await images.hold(image, None)
        held = await images.hold(image, None)
        held.release()
        nursery.cancel_scope.cancel()
    layer.have.close()


async def test_few_images_stay_open_without_a_reader(home: Home) -> None:
    """Each has files open, and memory; those that were released longest ago are closed."""
    layers = [
        StoredLayer(home.torrents, make_image(1 << 16, seed=n), bytes([n] * 20)) for n in range(12)
    ]
    kept = [layer.directory.name for layer in layers[-MAX_LINGERING:]]
    for layer in layers:
        layer.store(range(layer.pieces))
        layer.have.close()
    async with trio.open_nursery() as nursery:
        images = Images(home, Client(), nursery, home.root)
        first = await images.hold(signed(layers[0], size=1 << 16), None)
        for layer in layers[1:]:
            (await images.hold(signed(layer, size=1 << 16), None)).release()
        wanted = {layers[0].directory.name, *kept}
        await until(lambda: {Path(each).parts[-4] for each in packs(home)} == wanted)
        again = await images.hold(signed(layers[-MAX_LINGERING], size=1 << 16), None)
        first.release()
        await until(lambda: {Path(each).parts[-4] for each in packs(home)} == wanted)
        data = bytearray(4096)
        again.device.read_into(0, (memoryview(data),))
        assert data == make_image(1 << 16, seed=12 - MAX_LINGERING)[:4096]
        nursery.cancel_scope.cancel()


def packs(home: Home) -> set[str]:
    """The packs and indexes of layers that are open."""
    return {path for path in open_files(home) if Path(path).name in ("index", "pack")}


async def test_open_images_share_one_cache(home: Home) -> None:
    layers = [
        StoredLayer(home.torrents, make_image(1 << 16, seed=n), bytes([n] * 20)) for n in range(3)
    ]
    for layer in layers:
        layer.store(range(layer.pieces))
        layer.have.close()
    async with trio.open_nursery() as nursery:
        images = Images(home, Client(), nursery, home.root)
        held = [await images.hold(signed(each, size=1 << 16), None) for each in layers]
        caches = [each.device.image._chunks._cache_size for each in held]
        assert sum(caches) <= DEFAULT_CACHE_SIZE
        assert len(set(caches)) == 1
        nursery.cancel_scope.cancel()


def test_a_mount_may_open_as_many_files_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, hard))
        allow_many_files()
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert allowed == (max(soft // 2, min(hard, 1 << 16)), hard)
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
