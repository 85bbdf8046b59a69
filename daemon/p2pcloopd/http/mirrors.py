"""Mirrors as a node reads them: a URL or a directory with the layout of formats/mirror.py.

What comes from a mirror is not trusted: records and manifests are signed, metadata is compared
with the info hash here, and bytes of layers with SHA-256 by their readers.
"""

from __future__ import annotations

import math
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import trio

from p2pcloop.errors import (
    FormatError,
    NotHereError,
    P2pcloopError,
    UnreachableError,
    storage_error,
)
from p2pcloop.formats.manifest import MAX_MANIFEST_SIZE, LayerRef
from p2pcloop.formats.mirror import (
    MAX_METAINFO_SIZE,
    DispatchPath,
    LayerFilePath,
    ManifestPath,
    MetainfoPath,
    MirrorPath,
    RecordPath,
    extract_info,
    layer_parts,
)
from p2pcloop.formats.name import Name
from p2pcloop.formats.record import MAX_RECORD_SIZE
from p2pcloop.words import tr
from p2pcloopd.http.client import (
    HttpClient,
    OverloadedError,
    RangesIgnoredError,
    Span,
    Take,
    WrongRangeError,
)

RETRY_SECONDS = 1.0
"""How long a mirror that did not answer, or could not now, is asked for nothing, where it does not
say itself how long; twice as long after each failure that follows, up to `PENALTY_SECONDS`."""

PENALTY_SECONDS = 30.0
"""How long a mirror that answered wrongly is asked for nothing; no mirror longer, whatever it
says."""

MIN_RETRY_SECONDS = 0.1
"""A server that says "again at once" is not asked without a pause."""

MAX_FAILURES = 6
"""Failures that are counted: the pause is at its longest then."""

ERROR_SECONDS = 60.0
"""A failure counts as one of now for so long, where no reader waits for what it was about."""

MAX_KNOWN = 256
"""Mirrors whose behaviour is remembered."""

MAX_WHOLE = 1 << 30
"""Bytes of a layer up to which whole files are taken of a server that ignores ranges: a reader of
the last of them waits for all, and what breaks off begins anew. A CD fits, a DVD does not."""

FORGET_RANGES_SECONDS = 300.0
"""A server that ignored a range is taken to do so for so long; it may be mended."""

MAX_WRONG_RANGES = 2
"""So many wrong parts of files, one after the other, count as ignored ranges: the server sends what
it likes. One alone may be an accident."""

_PART_SIZE = 1 << 20

_SCHEMES = ("http://", "https://")


class Files(Protocol):
    """The files of one mirror.

    Raises:
        NotHereError: there is no such file.
        P2pcloopError: it cannot be asked, or the answer is not what was asked for.
    """

    async def get(self, path: MirrorPath, limit: int) -> bytes:
        """A whole file of at most `limit` bytes."""

    async def get_span(self, path: MirrorPath, span: Span) -> bytes:
        """Exactly these bytes of a file."""

    async def post(self, path: MirrorPath, limit: int) -> bytes:
        """What is no file, and not the same twice; at most `limit` bytes."""

    async def get_parts(self, path: MirrorPath, size: int, take: Take) -> None:
        """Have a whole file of exactly `size` bytes handed over as it comes."""

    def rate(self) -> float | None:
        """Bytes a second at which they come, once begun; None where that is not known."""


class UrlFiles:
    """Files below a URL; see `Files`."""

    def __init__(self, client: HttpClient, base: str) -> None:
        self._client = client
        self._base = base

    async def get(self, path: MirrorPath, limit: int) -> bytes:
        """See `Files.get`."""
        return await self._client.get(self._url(path), limit)

    async def get_span(self, path: MirrorPath, span: Span) -> bytes:
        """See `Files.get_span`."""
        return await self._client.get_span(self._url(path), span)

    async def post(self, path: MirrorPath, limit: int) -> bytes:
        """See `Files.post`."""
        return await self._client.post(self._url(path), limit)

    async def get_parts(self, path: MirrorPath, size: int, take: Take) -> None:
        """See `Files.get_parts`."""
        await self._client.get_parts(self._url(path), size, take)

    def rate(self) -> float | None:
        """See `Files.rate`."""
        return self._client.rate(self._base)

    def _url(self, path: MirrorPath) -> str:
        return f"{self._base}{path}"


class SeedFiles(UrlFiles):
    """Files of a web seed (BEP 19): those of layers alone, which lie below its URL by the names
    that their torrents have; see `Files`."""

    def _url(self, path: MirrorPath) -> str:
        if not isinstance(path, LayerFilePath):
            raise NotHereError(tr("{base} is a web seed, which has content alone", base=self._base))
        base = self._base if self._base.endswith("/") else f"{self._base}/"
        return f"{base}{path.torrent_name}/{path.file}"


class DirectoryFiles:
    """Files in a directory of this machine; see `Files`."""

    def __init__(self, base: str) -> None:
        self._base = Path(base)

    async def get(self, path: MirrorPath, limit: int) -> bytes:
        """See `Files.get`."""
        data = await trio.to_thread.run_sync(_read, self._base / str(path), 0, limit + 1)
        if len(data) > limit:
            raise FormatError(
                tr("{base} is longer than {limit} bytes", base=self._base / str(path), limit=limit)
            )
        return data

    async def get_span(self, path: MirrorPath, span: Span) -> bytes:
        """See `Files.get_span`."""
        where = self._base / str(path)
        data = await trio.to_thread.run_sync(_read, where, span.offset, span.length)
        if len(data) != span.length:
            raise FormatError(tr("{where} is shorter than it must be", where=where))
        return data

    async def post(self, path: MirrorPath, limit: int) -> bytes:  # noqa: ARG002
        """See `Files.post`."""
        raise NotHereError(tr("{base} is a directory, and dispatches nothing", base=self._base))

    async def get_parts(self, path: MirrorPath, size: int, take: Take) -> None:
        """See `Files.get_parts`."""
        where = self._base / str(path)
        length = await trio.to_thread.run_sync(_size, where)
        if length != size:
            raise FormatError(
                tr(
                    "{where} has {length} bytes, and must have {size}",
                    where=where,
                    length=length,
                    size=size,
                )
            )
        for offset in range(0, size, _PART_SIZE):
            await take(await self.get_span(path, Span(offset, min(_PART_SIZE, size - offset))))

    def rate(self) -> float | None:
        """See `Files.rate`."""
        return None


class MirrorReader:
    """One mirror (p2pcloopd.names.lookup.Mirror), and how it went with it so far.

    Every method raises `NotHereError` where the mirror does not have it, another `P2pcloopError`
    where it cannot be asked or answers something else; none takes longer than the limits of
    client.py allow.

    Attributes:
        base: its URL or its absolute directory; ends in "/".
        received: bytes of records, manifests, metadata and layers that came from it.
        fault: what went wrong last, or None where it answered last.
        asked: requests for content that are under way.
    """

    def __init__(self, base: str, files: Files) -> None:
        self.base = base
        self.received = 0
        self.fault: str | None = None
        self._failed_at = -math.inf
        self._absent = self._of_content = False
        self._files = files
        self._answered_at = 0.0
        self.asked = 0
        self._not_before = self._whole_until = -math.inf
        self._failures = 0
        self._wrong_ranges = 0

    async def record(self, name: Name) -> bytes:
        """The signed record of a name, not checked. To have none of that name is no fault."""
        return await self._get(self._files.get(RecordPath(name), MAX_RECORD_SIZE), optional=True)

    async def manifest(self, manifest_id: bytes) -> bytes:
        """A signed manifest, not checked."""
        return await self._get(self._files.get(ManifestPath(manifest_id), MAX_MANIFEST_SIZE))

    async def info(self, info_hash: bytes) -> bytes:
        """The bencoded info dictionary of a torrent, which has that info hash."""
        path = MetainfoPath(info_hash)
        data = await self._get(self._files.get(path, MAX_METAINFO_SIZE))
        try:
            return extract_info(data, info_hash)
        except FormatError as err:
            error = FormatError(tr("{base}{path}: {err}", base=self.base, path=path, err=err))
            self.on_failure(error)
            raise error from err

    async def range(self, layer: LayerRef, offset: int, length: int) -> bytes:
        """Bytes of a layer's torrent, its files end to end; not checked."""
        parts = []
        with self._asking_content():
            for path, start, size in layer_parts(layer, offset, length):
                parts.append(await self._files.get_span(path, Span(start, size)))
        data = b"".join(parts)
        self._on_answer(len(data), of_content=True)
        return data

    async def whole(self, layer: LayerRef, take: Take) -> None:
        """Have all of a layer's torrent handed over, its files end to end; not checked."""

        async def count(data: bytes) -> None:
            self.received += len(data)
            await take(data)

        with self._asking_content():
            for path, _, size in layer_parts(layer, 0, layer.index_length + layer.pack_length):
                await self._files.get_parts(path, size, count)
        self._answered_at, self._failures = trio.current_time(), 0  # its fault stays told

    @contextmanager
    def _asking_content(self) -> Iterator[None]:
        self.asked += 1
        try:
            yield
        except P2pcloopError as err:
            self.on_failure(err, of_content=True)
            raise
        finally:
            self.asked -= 1

    async def dispatch(self, path: DispatchPath, piece_length: int) -> tuple[int, bytes] | None:
        """A piece that this mirror chose, and its number; not checked. None where others got all.

        That it is no node, and dispatches nothing, is no fault.
        """
        data = await self._get(self._files.post(path, 4 + piece_length), optional=True)
        return (int.from_bytes(data[:4], "big"), data[4:]) if data else None

    def on_failure(self, error: P2pcloopError, *, of_content: bool = False) -> None:
        """Note that it failed, or that what it gave was found wrong."""
        self.fault, self._of_content = str(error), of_content
        self._failed_at = trio.current_time()
        self._absent = isinstance(error, NotHereError)
        if self._absent:  # to have it in part is no fault
            return
        if self._ignores_ranges(error):  # it may be asked for whole files
            self._whole_until = trio.current_time() + FORGET_RANGES_SECONDS
            return
        if self.usable:  # of several requests that fail together, the first counts
            self._failures = min(self._failures + 1, MAX_FAILURES)
        if not isinstance(error, UnreachableError | WrongRangeError):
            pause = PENALTY_SECONDS
        elif isinstance(error, OverloadedError) and error.after is not None:
            pause = max(error.after, MIN_RETRY_SECONDS)
        else:
            pause = RETRY_SECONDS * 2.0 ** (self._failures - 1)
        until = trio.current_time() + min(pause, PENALTY_SECONDS)
        self._not_before = max(until, self._not_before)

    def _ignores_ranges(self, error: P2pcloopError) -> bool:
        if isinstance(error, WrongRangeError):
            self._wrong_ranges += 1
            return self._wrong_ranges >= MAX_WRONG_RANGES
        return isinstance(error, RangesIgnoredError)

    @property
    def rate(self) -> float | None:
        """Bytes a second at which they come, once begun; None where that is not known."""
        return self._files.rate()

    @property
    def error(self) -> str | None:
        """Its fault, as far as it is one now: a missing file is none once no reader waits for it,
        and a failure of a while ago may be over."""
        lately = trio.current_time() - self._failed_at < ERROR_SECONDS and not self._absent
        return self.fault if lately or self.whole_only else None

    @property
    def not_before(self) -> float:
        """When it may be asked again, in trio's time; in the past where it did not fail lately."""
        return self._not_before

    @property
    def usable(self) -> bool:
        """Whether it may be asked now."""
        return trio.current_time() >= self._not_before

    @property
    def whole_only(self) -> bool:
        """Whether it ignores requests for parts of a file."""
        return trio.current_time() < self._whole_until

    @property
    def preference(self) -> float:
        """The one that answered last is asked first: what is smaller comes before."""
        return -self._answered_at

    async def _get(self, asked: Awaitable[bytes], *, optional: bool = False) -> bytes:
        try:
            data = await asked
        except P2pcloopError as err:
            if not (optional and isinstance(err, NotHereError)):
                self.on_failure(err)
            raise
        self._on_answer(len(data))
        return data

    def _on_answer(self, size: int, *, of_content: bool = False) -> None:
        self.received += size
        # Who serves small files may be at fault with ranges all the same; and what was under way
        # when it failed says nothing of why it is left alone.
        if self.usable and (of_content or not self._of_content):
            self.fault = None
        if of_content:
            self._wrong_ranges = 0
        self._answered_at = trio.current_time()
        self._failures = 0


class Mirrors:
    """The mirrors that a node knows of, one reader each."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._readers: OrderedDict[str, MirrorReader] = OrderedDict()

    @property
    def known(self) -> tuple[MirrorReader, ...]:
        """The last used come last."""
        return tuple(self._readers.values())

    def open(self, base: str) -> MirrorReader:
        """The reader of the mirror at a URL or in an absolute directory, which ends in "/"."""
        is_url = base.lower().startswith(_SCHEMES)
        return self._reader(base, UrlFiles(self._client, base) if is_url else DirectoryFiles(base))

    def open_seed(self, url: str) -> MirrorReader:
        """A web seed, which is a mirror of layers' content alone."""
        return self._reader(url, SeedFiles(self._client, url))

    def _reader(self, base: str, files: Files) -> MirrorReader:
        reader = self._readers.get(base)
        if reader is None:
            reader = self._readers[base] = MirrorReader(base, files)
            if len(self._readers) > MAX_KNOWN:
                self._readers.popitem(last=False)
        self._readers.move_to_end(base)
        return reader


def _read(path: Path, offset: int, length: int) -> bytes:
    """At most `length` bytes of a regular file."""
    with _opened(path) as fd:
        return os.pread(fd, length, offset)


def _size(path: Path) -> int:
    """Bytes of a regular file."""
    with _opened(path) as fd:
        return os.fstat(fd).st_size


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A regular file, to be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotHereError(tr("{path} is not a file", path=path))
            yield fd
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise NotHereError(tr("there is no {path}", path=path)) from err
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err
