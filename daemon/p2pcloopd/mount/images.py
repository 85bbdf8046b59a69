"""The images that a mount reads: opened at the first read, and closed once nothing uses them.

One mount may show thousands of images. Those that are used are bounded by the programs that use
them; of the others a few stay open. All together they have the memory of one block server's cache.
"""

from __future__ import annotations

import logging
import shlex
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from p2pcloop.client.whole import is_all_here
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.file_tree import FileTree
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.block.opening import open_disk
from p2pcloopd.block.source import StoredBackend
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.block.supplier import Caller
from p2pcloopd.entry import plain_errors

LINGER_SECONDS = 30.0
"""An image that is not used stays open so long: programs open files again and again."""

MAX_LINGERING = 8
"""Images that stay open without a user; `find` over a mount opens one after the other."""

_MIN_CACHE = 4 << 20
"""Bytes of the cache of an image, however many are open: some chunks."""

_KNOW_SECONDS = 2.0
"""While p2pcloopd is down, what is here can be read all the same."""

_log = logging.getLogger(__name__)


class HeldImage:
    """An image that stays open until `release`."""

    def __init__(self, image: _Image, backend: StoredBackend) -> None:
        self._image: _Image | None = image
        self.backend = backend

    @property
    def device(self) -> ImageDevice:
        """The device, which is only read."""
        return self.backend.device

    @property
    def tree(self) -> FileTree[Any] | None:
        """Its file system, with what that keeps in memory; None until a reader of it has set it."""
        return None if self._image is None else self._image.tree

    @tree.setter
    def tree(self, tree: FileTree[Any]) -> None:
        assert self._image is not None, "it is held"
        self._image.tree = tree

    def release(self) -> None:
        """Use it no more; a second call does nothing."""
        if self._image is not None:
            self._image.drop()
            self._image = None


@dataclass(eq=False)
class _Image:
    """An image that is open or being opened, and how many use it.

    Attributes:
        rest: called when its last user has gone.
        give_up: called when every reader that waited for the opening has gone. It is cancelled
            then, which takes a while: a reader that comes meanwhile must not find it.
        tree: its file system, once one was read.
    """

    rest: Callable[[], None]
    give_up: Callable[[], None]
    users: int = 0
    backend: StoredBackend | None = None
    tree: FileTree[Any] | None = None
    error: P2pcloopError | None = None
    hurried: bool = False
    opening: trio.CancelScope = field(default_factory=trio.CancelScope)
    opened: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)

    def use(self) -> None:
        self.users += 1
        self.hurried = False
        self._note()

    def hurry(self) -> None:
        """Be closed now unless it is used again before that."""
        self.hurried = True
        self._note()

    def drop(self) -> None:
        self.users -= 1
        self._note()
        if not self.users and self.opened.is_set():
            self.rest()
        if not self.users and not self.opened.is_set():
            self.give_up()
            self.opening.cancel()

    def _note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def unused(self) -> None:
        """Return when nothing has used it for a while; right after that, `users` is 0."""
        while True:
            if self.users:
                await self.changed.wait()
                continue
            if self.hurried:
                return
            with trio.move_on_after(LINGER_SECONDS) as pause:
                await self.changed.wait()
            if pause.cancelled_caught and not self.users:
                return


class Images:
    """Opens images of a home, each once however many files of it are read."""

    def __init__(self, home: Home, client: Caller, nursery: trio.Nursery, mount: Path) -> None:
        """Open nothing yet.

        Args:
            home: whose store and p2pcloopd are used.
            client: a connection to p2pcloopd.
            nursery: has a task for each open image.
            mount: where they are shown; `p2pcloop daemon stop` names it.
        """
        self._home = home
        self._client = client
        self._nursery = nursery
        self._command = f"mount {shlex.quote(str(mount))}"
        self._images: dict[bytes, _Image] = {}
        self._resting: OrderedDict[bytes, None] = OrderedDict()

    async def hold(self, signed: SignedManifest, secret: bytes | None) -> HeldImage:
        """Open an image, unless it is open.

        Raises:
            UsageError, MismatchError: it is private, and the secret is missing or another one.
            P2pcloopError: it cannot be read.
        """
        image = self._images.get(signed.id)
        if image is None:
            image = self._images[signed.id] = _Image(
                lambda: self._rest(signed), lambda: self._take_out(signed)
            )
            self._nursery.start_soon(self._keep, image, signed, secret)
        image.use()
        self._resting.pop(signed.id, None)
        try:
            await image.opened.wait()
            if image.error is not None:
                raise image.error.with_traceback(None)
        except BaseException:
            image.drop()
            raise
        assert image.backend is not None, "it is open, or there is an error"
        return HeldImage(image, image.backend)

    async def _keep(self, image: _Image, signed: SignedManifest, secret: bytes | None) -> None:
        try:
            with image.opening, plain_errors():
                await self._serve(image, signed, secret)
        except P2pcloopError as err:
            image.error = err
        except Exception as err:  # a bug that shows in one image must not end the others' readers
            _log.exception("%s failed by a bug of p2pcloop", signed.manifest.name)
            image.error = P2pcloopError(
                tr("{manifest} cannot be read: {err}", manifest=signed.manifest.name, err=err)
            )
        finally:
            if self._images.get(signed.id) is image:
                self._take_out(signed)
            image.opened.set()

    def _take_out(self, signed: SignedManifest) -> None:
        """The next reader opens the image anew."""
        del self._images[signed.id]
        self._resting.pop(signed.id, None)
        self._divide_cache()

    def _rest(self, signed: SignedManifest) -> None:
        """Of the images without a user, close those that were released longest ago."""
        if signed.id not in self._images:  # it failed while it was used
            return
        self._resting[signed.id] = None
        while len(self._resting) > MAX_LINGERING:
            self._images[self._resting.popitem(last=False)[0]].hurry()

    def _divide_cache(self) -> None:
        """Give each open image its part of the memory for decoded chunks."""
        opened = [image.backend for image in self._images.values() if image.backend is not None]
        for backend in opened:
            part = max(_MIN_CACHE, DEFAULT_CACHE_SIZE // len(opened))
            backend.device.image.limit_cache(part)

    async def _serve(self, image: _Image, signed: SignedManifest, secret: bytes | None) -> None:
        await self._know(signed)
        spec = BlockServerSpec(self._home, signed, secret=secret, command=self._command)
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            disk = await open_disk(spec, nursery, stack, _nothing, _nothing)
            backend = disk.image
            assert isinstance(backend, StoredBackend), "it is of a manifest"
            try:
                if not backend.whole:
                    nursery.start_soon(backend.prefetch.follow)
                image.backend = backend
                self._divide_cache()
                image.opened.set()
                await image.unused()
                self._take_out(signed)
            finally:
                with trio.CancelScope(shield=True):
                    await backend.report_booted()
                disk.close()
            nursery.cancel_scope.cancel()

    async def _know(self, signed: SignedManifest) -> None:
        """Have p2pcloopd know where the image may be had, unless all of it is here."""
        if is_all_here(signed, self._home):
            return
        manifest = signed.manifest
        try:
            with trio.move_on_after(_KNOW_SECONDS):
                await self._client.call("resolve", ref=str(manifest.name), at=manifest.version)
        except P2pcloopError as err:  # its layers are had from where they were before
            _log.info("p2pcloopd does not find %s: %s", manifest.name, err)


def _nothing() -> None:
    """Do nothing: what is open is told by an event."""
