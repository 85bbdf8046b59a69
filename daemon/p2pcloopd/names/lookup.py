"""Finding name records: every source is asked at once, and the newest valid record wins.

Where a record came from does not matter (docs/formats/record.md): it is signed by the key in its
name. So sources hand over bytes as they came, and they are checked here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Protocol

import trio

from p2pcloop.errors import MismatchError, NotHereError, P2pcloopError
from p2pcloop.formats.name import Name
from p2pcloop.formats.record import SignedRecord, open_record
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

LOOK_SECONDS = 10.0
"""The longest that sources are waited for."""

HISTORY_SECONDS = 5.0
"""The longest that a manifest which another one names is waited for."""

GRACE_SECONDS = 1.0
"""How long the others are waited for once one has answered, where any version will do."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record as a source gave it, and where what it points to may be had.

    Attributes:
        data: the signed record's bytes, not checked.
        mirrors: base URLs (ending in "/") or absolute directories (ending in "/") that may have
            its manifest and its layers.
        peers: (host, port) of BitTorrent peers that may have them.
    """

    data: bytes
    mirrors: tuple[str, ...] = ()
    peers: tuple[tuple[str, int], ...] = ()


class RecordSource(Protocol):
    """A place where records of names lie: a mirror, the LAN, the DHT."""

    @property
    def name(self) -> str:
        """What it is called in messages: `https://host/dir/`, `the DHT`, `the LAN`."""

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        """All records of a name that it has; none is an answer, too. May take as long as it likes:
        the caller bounds it by cancelling.

        Raises:
            P2pcloopError: it cannot be asked, or answered nonsense; other sources go on.
        """


class Mirror(Protocol):
    """One copy of the static layout (docs/formats/mirror.md): a URL or a directory.

    Both methods are bounded in bytes and time, and check nothing but sizes.
    """

    @property
    def base(self) -> str:
        """Its URL, or its absolute directory; ends in "/"."""

    async def record(self, name: Name) -> bytes:
        """The signed record at `@<key>/<label>`.

        Raises:
            NotHereError: it has none.
            P2pcloopError: it cannot be asked, or answered nonsense.
        """

    async def manifest(self, manifest_id: bytes) -> bytes:
        """The signed manifest at `manifests/<id hex>`; errors as of `record`."""


class MirrorSource:
    """A mirror as a source of records."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    @property
    def name(self) -> str:
        return self._mirror.base

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        return [FoundRecord(await self._mirror.record(name), mirrors=(self._mirror.base,))]


@dataclass(slots=True)
class LookedUp:
    """What the sources said about a name.

    Attributes:
        newest: the valid records of the highest version that was found: one, or more where they
            name different manifests (a fork); none where nothing was found.
        mirrors: where the newest may be had, as of `FoundRecord`.
        peers: as of `FoundRecord`.
        problems: a line for each source that could not be asked, or gave something wrong, and why.
        without: a line for each source that answered that it has no record of the name.
    """

    newest: list[SignedRecord] = field(default_factory=list)
    mirrors: list[str] = field(default_factory=list)
    peers: list[tuple[str, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def add(self, signed: SignedRecord, found: FoundRecord) -> None:
        """Take a valid record."""
        version = self.newest[0].record.version if self.newest else 0
        if signed.record.version < version:
            return
        if signed.record.version > version:
            self.newest, self.mirrors, self.peers = [], [], []
        if all(signed.record.manifest_id != known.record.manifest_id for known in self.newest):
            self.newest.append(signed)
        self.mirrors += [base for base in found.mirrors if base not in self.mirrors]
        self.peers += [peer for peer in found.peers if peer not in self.peers]


async def look_up(
    name: Name,
    sources: Iterable[RecordSource],
    *,
    thorough: bool,
    seconds: float = LOOK_SECONDS,
) -> LookedUp:
    """Ask all sources at once. Takes `seconds` at most, whatever they do.

    Args:
        thorough: wait for all of them, since the newest version is wanted; otherwise only a
            moment longer than for the first valid answer.
    """
    result = LookedUp()

    async def ask(source: RecordSource, scope: trio.CancelScope) -> None:
        valid = await _ask(source, name, result)
        waiting.discard(source.name)
        if valid and not thorough:
            scope.deadline = min(scope.deadline, trio.current_time() + GRACE_SECONDS)

    waiting: set[str] = set()
    with trio.move_on_after(seconds) as scope:
        async with trio.open_nursery() as nursery:
            for source in sources:
                waiting.add(source.name)
                nursery.start_soon(ask, source, scope)
    result.problems += [tr("{each}: no answer in time", each=each) for each in sorted(waiting)]
    for problem in result.problems + result.without:
        _log.info("looking for %s: %s", name, problem)
    return result


async def _ask(source: RecordSource, name: Name, result: LookedUp) -> bool:
    """Add what a source says to the result; whether a record of it is valid."""
    problems: list[str] = []
    found: Sequence[FoundRecord] = ()
    try:
        found = await source.find(name)
    except NotHereError:
        pass
    except P2pcloopError as err:
        problems.append(str(err))
    if not found and not problems:
        result.without.append(tr("{source}: has no record of it", source=source.name))
    valid = False
    for each in found:
        try:
            result.add(_check(each, name), each)
            valid = True
        except P2pcloopError as err:
            problems.append(str(err))
    result.problems += [
        each if each.startswith(source.name) else f"{source.name}: {each}" for each in problems
    ]
    return valid


def _check(found: FoundRecord, name: Name) -> SignedRecord:
    signed = open_record(found.data)
    if signed.record.name != name:
        raise MismatchError(tr("answered with a record of {record}", record=signed.record.name))
    return signed
