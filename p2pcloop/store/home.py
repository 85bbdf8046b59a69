"""P2PCLOOP_HOME: the directory of a node's state, and which process may write what.

    lock                      flock'd by the p2pcloopd that runs on this home; holds its process id
    starting                  flock'd by the command that starts p2pcloopd
    publishing                a byte for each label is locked by the command that publishes under it
    short-names.lock          locked by the command that changes short names
    trusted-keys.lock         locked by the command that changes trusted keys
    control.sock              the control socket, mode 0600, there while p2pcloopd serves
    config.toml               the user's settings
    ports.msgpack             the ports that were chosen at the first start
    daemon.log                the log of a detached p2pcloopd
    mount.log                 the log of detached mounts
    keys/                     the user's signing keys
    manifests/<sha256 hex>    signed manifests as they were received
    names.msgpack             the manifest that each name points to
    short-names               the user's own names for names
    pins.msgpack              images that are never evicted
    profiles/<image id hex>   the blocks that boots of an image read, in order
    torrents/<infohash hex>/  one torrent: metadata, have bitmap, peers, when used, data
    leases/                   images that running readers use, a file each, locked by the reader
    guests/<name>/            a guest that runs here, or that has ended and was kept
    overlays/                 overlays that lie on images of this home, a file each
    sources/                  the file that the versions of a name were made of, a file each
    indexes/                  indexes of cloop files that are used where they lie
    kept/<image id hex>       decoded chunks of an image, for its next boot
    tmp/                      files that are being made; on the file system of torrents/

The user's default home also has `uml/`: the kernel that `tools/get-uml-kernel` unpacked.

Only the holder of `lock` writes `ports.msgpack`, `manifests/`, `names.msgpack`, `pins.msgpack` and
`torrents/`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pcloop.errors import BusyError, UsageError, storage_error
from p2pcloop.formats.named import has_name, open_named, sync_names
from p2pcloop.frozen import dataclass
from p2pcloop.store.default_root import default_root
from p2pcloop.words import tr

_STAGING_PREFIX = "seed-"

SOCKET_SUFFIX = ".new"
"""The control socket is bound with this suffix, and renamed when it accepts connections."""


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one node's state.

    Attributes:
        root: absolute; it need not exist before `create`.
    """

    root: Path

    @classmethod
    def at(cls, root: Path | str | None = None) -> Home:
        """The home at `root`, or the user's default one (XDG data directory)."""
        if root is None:
            root = default_root(os.environ)
        return cls(Path(root).expanduser().absolute())

    @property
    def option(self) -> str:
        """The option that makes a command act on this home, for messages."""
        return f"--home {shlex.quote(str(self.root))}"

    @property
    def lock_path(self) -> Path:
        return self.root / "lock"

    @property
    def starting_path(self) -> Path:
        return self.root / "starting"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def ports(self) -> Path:
        return self.root / "ports.msgpack"

    @property
    def link_places(self) -> Path:
        return self.root / "link-places"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"

    @property
    def mount_log(self) -> Path:
        return self.root / "mount.log"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def names(self) -> Path:
        return self.root / "names.msgpack"

    @property
    def short_names(self) -> Path:
        return self.root / "short-names"

    @property
    def trusted_keys(self) -> Path:
        return self.root / "trusted-keys"

    @property
    def pins(self) -> Path:
        return self.root / "pins.msgpack"

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def guests(self) -> Path:
        return self.root / "guests"

    @property
    def overlays(self) -> Path:
        return self.root / "overlays"

    @property
    def torrents(self) -> Path:
        return self.root / "torrents"

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    @property
    def indexes(self) -> Path:
        return self.root / "indexes"

    @property
    def kept(self) -> Path:
        return self.root / "kept"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def short_names_lock(self) -> Path:
        return self.root / "short-names.lock"

    @property
    def trusted_keys_lock(self) -> Path:
        return self.root / "trusted-keys.lock"

    @property
    def publishing_path(self) -> Path:
        """It is there once a command has published in this home."""
        return self.root / "publishing"

    def own(self) -> tuple[Path, ...]:
        """All that has a meaning in a home, whether it is there or not."""
        locks = (
            *(self.lock_path, self.starting_path, self.publishing_path),
            *(self.short_names_lock, self.trusted_keys_lock),
        )
        files = self.control_socket, self.config, self.ports, self.link_places
        logs = self.log, self.mount_log
        lists = self.names, self.short_names, self.trusted_keys, self.pins
        readers = self.guests, self.sources, self.indexes, self.kept
        return *locks, *files, *logs, *lists, *readers, *self._directories()

    def _directories(self) -> tuple[Path, ...]:
        own = self.keys, self.manifests, self.profiles
        return *own, self.leases, self.overlays, self.torrents, self.tmp

    def create(self) -> None:
        """Make the directories that are missing, for this user only.

        Raises:
            UsageError: the home is not a directory, belongs to another user, or others can write
                in it.
            StorageError: the system refused.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            for directory in self._directories():
                directory.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as err:
            raise UsageError(
                tr("{path} is not a directory", path=err.filename), hint="choose another"
            ) from err
        except OSError as err:
            raise storage_error(tr("cannot create {root}", root=self.root), err) from err

    def _check_owner(self) -> None:
        status = self.root.stat()
        if status.st_uid != os.geteuid():
            raise UsageError(
                tr("{root} belongs to another user", root=self.root), hint="choose another --home"
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                tr("{root} can be written by other users", root=self.root),
                hint=tr(
                    "chmod go-w {root}; where that changes nothing, as on vfat, choose another"
                    " --home",
                    root=self.root,
                ),
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the process that writes this home. The kernel frees it when that ends.

        Raises:
            BusyError: a p2pcloopd runs on this home.
            StorageError: the system refused.
        """

        def take(fd: int) -> None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise BusyError(
                    tr(
                        "a p2pcloopd runs on {root} (process {fd})",
                        root=self.root,
                        fd=_read_pid(fd),
                    ),
                    hint="stop it with `p2pcloop daemon stop`, or choose another --home",
                ) from err

        with _locked(self.lock_path, take) as fd:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield

    def holder(self) -> int | None:
        """The process id of the p2pcloopd that runs on this home, or None if none does.

        Raises:
            StorageError: the system refused.
        """
        if not self.lock_path.exists():
            return None
        pid: int | None = None

        def take(fd: int) -> None:
            nonlocal pid
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                pid = None
            except BlockingIOError:
                pid = _read_pid(fd)

        with _locked(self.lock_path, take):
            return pid

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Wait until no other command starts p2pcloopd on this home, and keep others from it."""
        with _locked(self.starting_path, _wait_alone):
            yield

    @contextmanager
    def changing_short_names(self) -> Iterator[None]:
        """Wait until no other command changes the short names, and keep others from it."""
        self.create()
        with _locked(self.short_names_lock, _wait_alone):
            yield

    @contextmanager
    def changing_trusted_keys(self) -> Iterator[None]:
        """Wait until no other command changes the trusted keys, and keep others from it."""
        self.create()
        with _locked(self.trusted_keys_lock, _wait_alone):
            yield

    @contextmanager
    def publishing(self, label: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of the command that publishes under a label: it signs each version once.

        Args:
            on_wait: called if another command holds the lock, before this waits for it.
        """
        self.create()
        at = int.from_bytes(hashlib.sha256(label.encode()).digest()[:7])

        def take(fd: int) -> None:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
            except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
                on_wait()
                fcntl.lockf(fd, fcntl.LOCK_EX, 1, at)

        with _locked(self.publishing_path, take):
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory in `tmp` for p2pcloopd to take over; files that it leaves are deleted."""
        path, fd = self._new_staging()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)

    @contextmanager
    def sharing(self, staging: Path) -> Iterator[None]:
        """Hold another process's directory in `tmp`, too: it is not deleted under this one.

        Raises:
            StorageError: it is gone, with the process that made it.
        """
        try:
            fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise storage_error(tr("cannot open {path}", path=staging), err) from err
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def _new_staging(self) -> tuple[Path, int]:
        """Make and lock a directory; try again if another process deletes it in between.

        What killed processes left goes first: p2pcloopd may run for long.
        """
        self.clear_staging()
        while True:
            path = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=self.tmp))
            with suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_SH)  # NFS gives no exclusive lock to a reader
                if has_name(fd, path):
                    return path, fd
                os.close(fd)

    def clear_staging(self) -> None:
        """Delete the staging directories that no process holds any more."""
        for path in self.tmp.glob(f"{_STAGING_PREFIX}*"):
            with suppress(OSError), _open_directory(path) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)


@contextmanager
def _open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(path: Path, take: Callable[[int], None]) -> Iterator[int]:
    """Hold a lock file, which is made if it does not exist; `take` locks its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = open_named(lambda: os.open(path, flags, 0o600), take, path)
    except OSError as err:
        raise storage_error(tr("cannot open {path}", path=path), err) from err
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(
                tr("{path} is not a file: a regular one is needed", path=path), hint="move it away"
            )
        yield fd
    finally:
        os.close(fd)


def _wait_alone(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)


def _read_pid(lock: int) -> int | None:
    text = os.pread(lock, 32, 0).strip()
    return int(text) if text.isdigit() else None  # empty while the holder is about to write it


def replace_file(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, whole and durable, or leave it as it was.

    The new bytes are written to a file beside it, synced, and renamed over it; then the directory
    is synced. After a crash at any instant the old or the new content is there.

    Raises:
        StorageError: the system refused.
    """
    new = path.with_name(path.name + ".new")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        new.replace(path)
        sync_names(path.parent)
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=path), err) from err
