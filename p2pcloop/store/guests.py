"""The guests of a home: those that run, and those that have ended and were kept.

    guests/NAME/record.json   what the guest is, and how it ended: JSON, for people too
    guests/NAME/lock          locked by the process that runs the guest (fcntl(2), OFD lock)
    guests/NAME/waiting       one line for people: what the guest waits for; missing if nothing
    guests/NAME/fetched       one line: bytes that came for the guest, and when the first did
    guests/NAME/timeline      when its reads waited while it booted (docs/formats/timeline.md)
    guests/NAME/console.log   what the guest printed; console.log.1 has what came before
    guests/NAME/control.sock  served by the process that runs the guest
    guests/NAME/vnc-password  of its display, as vncpasswd(1) writes it

The process that runs a guest alone writes in its directory, so a guest needs no p2pcloopd. The
kernel frees the lock when that process and its block server have ended, for whatever reason: a
guest without an end in its record and without a holder of its lock was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from p2pcloop.errors import (
    BusyError,
    FormatError,
    NotHereError,
    P2pcloopError,
    StorageError,
    UsageError,
    storage_error,
)
from p2pcloop.formats.named import open_named, read_file, sync_names
from p2pcloop.formats.timeline import Timeline, decode_timeline
from p2pcloop.frozen import dataclass
from p2pcloop.store.guest_record import GuestRecord, decode_record, encode_record
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr

Earlier = Literal["refuse", "moved", "forget", "continue"]
"""What is done where a guest of the same name has ended and was kept: refuse the name; refuse it
unless that guest was moved to another machine, from where it may come back; forget that guest; or
go on with it: its log goes on, and it stays even if it does not start."""

State = Literal["running", "ended", "lost", "damaged"]
"""`lost`: the process that ran it was killed, so its record has no end. `damaged`: its record
cannot be read; `error` says why, and the other facts mean nothing."""

MAX_LOG = 4 << 20
"""Bytes of console.log; what came before it, as many at most, is in console.log.1."""

_MAX_WAITING = 400
_MAX_AUTOMATIC = 10_000
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_LOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a guest waits for.

    Attributes:
        what: for people.
        since: when that began, in seconds of Unix time.
    """

    what: str
    since: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came for a guest.

    Attributes:
        count: bytes of its image, as they are stored, that were not here.
        first: when the first of them came, in seconds of Unix time.
    """

    count: int
    first: float

    def encode(self) -> bytes:
        """The line of the guest's `fetched`, always as long."""
        return b"%20d %17.6f\n" % (self.count, self.first)


@dataclass(frozen=True, slots=True)
class GuestState:
    """A guest as it is now.

    Attributes:
        waiting: what it waits for, or None.
        fetched: bytes that came for it; None if nothing did, or could.
    """

    record: GuestRecord
    state: State
    waiting: Waiting | None = None
    fetched: int | None = None


class GuestFolder:
    """The directory of one guest."""

    def __init__(self, home: Home, name: str) -> None:
        self.name = name
        self.path = home.guests / name
        self.record_path = self.path / "record.json"
        self.waiting_path = self.path / "waiting"
        self.fetched_path = self.path / "fetched"
        self.timeline_path = self.path / "timeline"
        self.log_path = self.path / "console.log"
        self.old_log_path = self.path / "console.log.1"
        self.socket_path = self.path / "control.sock"
        self.vnc_password_path = self.path / "vnc-password"
        self.of_running = (
            *(self.waiting_path, self.fetched_path, self.socket_path, self.vnc_password_path),
        )
        self._lock_path = self.path / "lock"

    def read(self) -> GuestState:
        """Look at the guest.

        Raises:
            NotHereError: there is no such guest.
            FormatError: its record is damaged.
            StorageError: the system refused.
        """
        runs = self._is_held()  # first: a guest that ends meanwhile has its end in its record
        try:
            record = decode_record(read_file(self.record_path), self.name)
        except (FileNotFoundError, NotADirectoryError) as err:
            raise _no_guest(self.name) from err
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=self.record_path), err) from err
        if record.ended is not None:
            return GuestState(record, "ended", None, record.fetched)
        came = self.read_fetched()
        fetched = None if came is None else came.count
        if not runs:
            return GuestState(record, "lost", None, fetched)
        return GuestState(record, "running", self.read_waiting(), fetched)

    def read_record(self) -> GuestRecord | None:
        """The guest's record, or None if there is none any more; errors as for `read`."""
        try:
            return self.read().record
        except NotHereError:
            return None

    def read_log(self, write: Callable[[bytes], object], shown: int | None = None) -> int:
        """Hand over what the guest has printed, as far as it is kept.

        Args:
            write: gets the bytes.
            shown: bytes of console.log that are known already; None for nothing. Where that has
                begun anew since, or nothing is known, console.log.1 has what came before.

        Returns:
            How many bytes of console.log are known now.

        Raises:
            StorageError: the system refused.
        """
        earlier = b""
        try:
            with open(self.log_path, "rb") as log:
                if shown is None or shown > os.fstat(log.fileno()).st_size:
                    earlier = self._read_old_log(shown or 0)
                    shown = 0
                log.seek(shown)
                data = log.read()
        except FileNotFoundError:
            return 0
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=err.filename), err) from err
        write(earlier + data)
        return shown + len(data)

    def _read_old_log(self, position: int) -> bytes:
        with suppress(FileNotFoundError), open(self.old_log_path, "rb") as log:
            log.seek(position)
            return log.read()
        return b""

    def read_waiting(self) -> Waiting | None:
        """What the guest waits for, or None for nothing."""
        try:
            with open(self.waiting_path, encoding="utf-8", errors="replace") as file:
                text = printable(file.read(_MAX_WAITING).strip())
                since = os.fstat(file.fileno()).st_mtime
        except OSError:  # it waits for nothing
            return None
        return Waiting(text, since) if text else None

    def read_fetched(self) -> Fetched | None:
        """What came for the guest, or None for nothing."""
        try:
            count, first = read_file(self.fetched_path).split()
            return Fetched(int(count), float(first))
        except (OSError, ValueError):  # nothing yet, or only half of a line: it only informs
            return None

    def read_timeline(self) -> Timeline | None:
        """The timeline of the guest's last boot; None where nothing had to come for it.

        Raises:
            FormatError: it is damaged.
            StorageError: the system refused.
        """
        try:
            return decode_timeline(read_file(self.timeline_path))
        except FileNotFoundError:
            return None
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=self.timeline_path), err) from err

    def clear(self, claim: Claim) -> None:
        """Delete the directory, whose lock is `claim`, and let go of that.

        Raises:
            StorageError: the system refused, and the guest is still there.
        """
        try:
            self.record_path.unlink(missing_ok=True)  # first: without it there is no guest
        except OSError as err:
            raise storage_error(tr("cannot delete {path}", path=self.record_path), err) from err
        # What cannot be deleted now is no guest, and its name is free. A file system may keep an
        # open file under another name: the directory is then empty once the lock is closed.
        shutil.rmtree(self.path, ignore_errors=True)
        claim.close()
        with suppress(OSError):
            self.path.rmdir()

    def claim(self) -> Claim:
        """Lock the directory, which exists, for the process that runs the guest.

        Raises:
            BusyError: the guest runs.
            OSError: the system refused; FileNotFoundError if there is no such directory.
        """
        return Claim(self._lock_path, self.name)

    def _is_held(self) -> bool:
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        finally:
            os.close(fd)
        kind: int = _LOCK.unpack(asked)[0]
        return kind != fcntl.F_UNLCK


class Claim:
    """The lock on a guest's directory, until it is closed or all processes that have it end."""

    def __init__(self, path: Path, name: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

        def take(fd: int) -> None:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))

        try:
            self._fd = open_named(lambda: os.open(path, flags, 0o600), take, path)
        except OSError as err:
            if err.errno in (errno.EAGAIN, errno.EACCES):
                raise BusyError(
                    tr("the guest {name} runs", name=name),
                    hint=tr("choose another name, or end it: `p2pcloop stop {name}`", name=name),
                ) from err
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OwnGuest:
    """The guest that this process runs; as a context manager, it is let go at the end.

    Attributes:
        folder: where its files lie.
        record: what was last written to its record.
    """

    def __init__(self, home: Home, name: str | None, earlier: Earlier = "refuse") -> None:
        """Take a name.

        Args:
            name: None for the first free one of g1, g2 and so on.
            earlier: what to do about a guest that had the name before.

        Raises:
            UsageError: no name can be like this, or an earlier guest of this name was kept.
            BusyError: a guest of this name runs.
            StorageError: the system refused.
        """
        try:
            home.guests.mkdir(mode=0o700, exist_ok=True)
            if name is None:
                self.folder, self._claim = _take_free(home)
            else:
                self.folder, self._claim = _take(home, name, earlier)
        except OSError as err:
            raise storage_error(tr("cannot write in {path}", path=home.guests), err) from err
        self._continues = earlier == "continue" and self.folder.record_path.exists()
        self._suspended = self._earlier_suspend() if self._continues else None
        self.record: GuestRecord | None = None

    def _earlier_suspend(self) -> GuestRecord | None:
        """The record of a suspended guest that goes on under this name."""
        try:
            record = decode_record(read_file(self.folder.record_path), self.folder.name)
        except (FormatError, OSError):
            return None
        return record if record.reason == "suspended" else None

    @property
    def name(self) -> str:
        return self.folder.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        runs = self._continues and self.record is not None and self.record.ended is None
        if runs and isinstance(error, P2pcloopError):
            with suppress(StorageError):  # the error that was first is told
                if self._suspended is not None:  # it did not go on: it is as suspended as before
                    self._write(self._suspended)
                else:
                    self.end(reason="failed", exit_code=error.exit_code, error=str(error))
        self.close()

    def begin(self, **facts: Any) -> None:  # noqa: ANN401  the fields of GuestRecord
        """Write the record; `facts` are those that this does not know itself."""
        pid, now = os.getpid(), time.time()
        own: dict[str, Any] = {"name": self.name, "pid": pid, "process_start": process_start(pid)}
        self._write(GuestRecord(**own, started=now, kept=self._continues, **facts))

    def keep(self) -> None:
        """Have record and log stay when it has ended; the guest runs now."""
        assert self.record is not None
        self._suspended = None
        self._write(replace(self.record, kept=True))

    def learn_address(self, address: str) -> None:
        """Write into the record which address the guest was given while it booted."""
        if self.record is not None and self.record.address != address:
            self._write(replace(self.record, address=address))

    def end(self, **facts: Any) -> None:  # noqa: ANN401  the fields of GuestRecord
        """Write into the record how the guest ended."""
        if self.record is not None:
            self._write(replace(self.record, ended=time.time(), **facts))

    def record_moved(self, host: str) -> None:
        """Write into the record of a suspended guest that it went on at another machine."""
        if self._suspended is not None:
            self._write(replace(self._suspended, reason="moved", host=host))

    def close(self) -> None:
        """Let the guest go. Unless it is to be kept, nothing of it remains.

        Raises:
            StorageError: the system refused.
        """
        try:
            is_kept = self._continues if self.record is None else self.record.kept
            if not is_kept:
                self.folder.clear(self._claim)
            else:
                for path in self.folder.of_running:
                    path.unlink(missing_ok=True)
        except OSError as err:
            raise storage_error(
                tr("cannot delete files in {path}", path=self.folder.path), err
            ) from err
        finally:
            self._claim.close()

    def _write(self, record: GuestRecord) -> None:
        path = self.folder.record_path
        new = path.with_name("record.new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(encode_record(record))
                file.flush()
                if record.kept:  # others are worth nothing after a crash of the machine
                    os.fsync(file.fileno())
            new.replace(path)
            if record.kept:
                sync_names(path.parent)
        except OSError as err:
            raise storage_error(tr("cannot write {path}", path=path), err) from err
        self.record = record


def remove_guests(folders: list[GuestFolder]) -> None:
    """Delete the records, which may be damaged, and the logs of guests that have ended.

    Raises:
        NotHereError: there is no such guest as one of them; then all are still there.
        BusyError: one of them runs; then, too.
        StorageError: the system refused.
    """
    with ExitStack() as stack:
        claims = [(folder, stack.enter_context(_claim_ended(folder))) for folder in folders]
        for folder, claim in claims:
            folder.clear(claim)


def _claim_ended(folder: GuestFolder) -> Claim:
    if not _NAME.fullmatch(folder.name) or not folder.path.is_dir():
        raise _no_guest(folder.name)
    try:
        return folder.claim()
    except BusyError as err:
        hint = tr("`p2pcloop stop {folder}` ends it", folder=folder.name)
        raise BusyError(err.message, hint=hint) from err
    except FileNotFoundError as err:  # another command was faster
        raise _no_guest(folder.name) from err


def list_guests(home: Home) -> list[GuestState]:
    """All guests of a home, in the order in which they were started.

    Raises:
        StorageError: the system refused.
    """
    try:
        names = sorted(path.name for path in home.guests.iterdir())
    except FileNotFoundError:
        return []
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=home.guests), err) from err
    found = []
    for name in names:
        with suppress(NotHereError):  # it is about to start, or has just gone
            found.append(_look_at(GuestFolder(home, name)))
    # One that was not to be kept, and whose process was killed, is gone; its name is free.
    there = (guest for guest in found if guest.state != "lost" or guest.record.kept)
    return sorted(there, key=lambda guest: guest.record.started)


def _look_at(folder: GuestFolder) -> GuestState:
    """The guest of a directory; a record that is damaged hides no other."""
    try:
        return folder.read()
    except FormatError as err:
        own: dict[str, Any] = {"name": folder.name, "kept": True, "error": str(err)}
        empty: dict[str, Any] = {"overlay": None, "memory": 0, "network": "", "started": 0.0}
        nothing = GuestRecord(
            ref="", image="", version=None, pid=0, process_start=0, **own, **empty
        )
        return GuestState(nothing, "damaged")


def is_guest_name(name: str) -> bool:
    """Whether a guest can be called like this."""
    return _NAME.fullmatch(name) is not None


def find_guest(home: Home, name: str) -> GuestState:
    """The guest of a name; errors as for `GuestFolder.read`."""
    if not is_guest_name(name):
        raise _no_guest(name)
    return GuestFolder(home, name).read()


def user_of_overlay(home: Home, overlay: Path) -> GuestRecord | None:
    """The running guest that has this overlay open, or None.

    Raises:
        StorageError: as for `list_guests`.
    """
    wanted = os.path.realpath(overlay)
    for guest in list_guests(home):
        kept = guest.record.overlay
        if guest.state == "running" and kept is not None and os.path.realpath(kept) == wanted:
            return guest.record
    return None


def _no_guest(name: str) -> NotHereError:
    return NotHereError(
        tr("there is no guest {name}", name=printable(name)),
        hint="`p2pcloop ps --all` lists the guests",
    )


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since this machine did (proc(5)); None without one.

    With the number of a process it tells that process from all others.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _take(home: Home, name: str, earlier: Earlier = "refuse") -> tuple[GuestFolder, Claim]:
    """Make and lock the directory of a name."""
    if not is_guest_name(name):
        raise UsageError(
            tr("{name} cannot be the name of a guest", name=printable(name)),
            hint="give 1 to 32 of a to z, 0 to 9 and hyphens, as for a host",
        )
    folder = GuestFolder(home, name)
    while True:
        folder.path.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # deleted meanwhile, by the command that ran the guest
            claim = folder.claim()
            break
    of_ended = [folder.record_path, folder.log_path, folder.old_log_path]
    if folder.record_path.exists() and _is_kept(folder):
        if earlier == "refuse" or (earlier == "moved" and not _has_moved(folder)):
            claim.close()
            raise UsageError(
                tr("there was a guest {name} before, and its log is kept", name=name),
                hint=tr(
                    "`p2pcloop start {name}` boots it again, `p2pcloop rm --guest {name}` forgets"
                    " it, and --replace does so before it boots; or choose another name",
                    name=name,
                ),
            )
        if earlier == "continue":
            of_ended = []
    # Of one whose process was killed, and that was not kept; or that is to be forgotten.
    for path in (*of_ended, folder.timeline_path, *folder.of_running):
        path.unlink(missing_ok=True)
    return folder, claim


def check_is_here(record: GuestRecord) -> None:
    """Refuse to go on with a guest that went on at another machine.

    Raises:
        UsageError: it did.
    """
    if record.reason == "moved":
        state, version = printable(str(record.state)), record.state_version
        host = printable(str(record.host))
        raise UsageError(
            tr("the guest {name} was moved, and goes on at {host}", name=record.name, host=host),
            hint=tr(
                "`p2pcloop resume {state} --at {version}` begins a second one at the moment"
                " when it left",
                state=state,
                version=version,
            ),
        )


def _has_moved(folder: GuestFolder) -> bool:
    return _look_at(folder).record.reason == "moved"


def _is_kept(folder: GuestFolder) -> bool:
    return _look_at(folder).record.kept


def _take_free(home: Home) -> tuple[GuestFolder, Claim]:
    for number in range(1, _MAX_AUTOMATIC):
        with suppress(BusyError, UsageError):
            return _take(home, f"g{number}")
    raise UsageError(
        tr("{max_automatic} guests are kept here", max_automatic=_MAX_AUTOMATIC),
        hint="forget some: `p2pcloop rm --guest NAME`",
    )
