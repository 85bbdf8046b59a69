"""Mounting and unmounting by fusermount3, which needs no privilege, and what is mounted where.

fusermount3 opens /dev/fuse, mounts, and passes the descriptor over a socket whose number it finds
in the environment (libfuse, util/fusermount.c and lib/mount.c).
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pcloop.errors import (
    BusyError,
    NeedsPackageError,
    NotHereError,
    UsageError,
    storage_error,
)
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.programs import find_program

DEVICE = Path("/dev/fuse")
_NAME = "p2pcloop"
KIND = f"fuse.{_NAME}"
"""The type of our file system, as the table of mounts has it."""

_TREE_OPTIONS = ("ro", "default_permissions")
_VARIABLE = "_FUSE_COMMFD"
TABLE = Path("/proc/self/mountinfo")
"""All mounts of this process's mount namespace. poll(2) tells of a change as an error
(proc_pid_mounts(5)), each descriptor once."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted file system.

    Attributes:
        path: where.
        device: its numbers, "0:53": another one that is mounted later has others.
        kind: its type.
        source: what it was mounted from, in its own words.
    """

    path: Path
    device: str
    kind: str
    source: str


def mounted_at(path: Path) -> Mounted | None:
    """Return the file system that is mounted at a path, the last of several."""
    return next((each for each in reversed(_table()) if each.path == path), None)


def is_shown(there: Mounted) -> bool:
    """Whether a file system is mounted anywhere: where it was, or where it was bound or moved to.

    Only of one that still exists: once it does not, another one may have its numbers.
    """
    return any(each.device == there.device for each in _table())


def mounts_of(kind: str) -> list[Path]:
    """Return where file systems of a type are mounted."""
    return [each.path for each in _table() if each.kind == kind]


def _table() -> list[Mounted]:
    found = []
    # A mount point may hold any character but a line feed and a space, which are escaped.
    for line in os.fsdecode(TABLE.read_bytes()).split("\n")[:-1]:
        # proc_pid_mountinfo(5): ID, parent, device, root, mount point, ..., "-", type, source, ...
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        kind, source = after.split(" ")[:2]
        found.append(Mounted(Path(_plain(fields[4])), fields[2], kind, _plain(source)))
    return found


def real_path(path: Path) -> Path:
    """Return a path without symbolic links. It may lead to a mount whose process died."""
    return Path(os.path.realpath(path))


def check_device() -> None:
    """Check that this user may use FUSE.

    Raises:
        NeedsPackageError: fusermount3 or /dev/fuse is missing.
        StorageError: /dev/fuse cannot be opened.
    """
    find_program("fusermount3", "fuse3")
    if not DEVICE.exists():
        raise NeedsPackageError(
            tr("{device} is missing: this system has no FUSE", device=DEVICE),
            hint="load the module (`modprobe fuse` as root); a container needs --device /dev/fuse",
        )
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        raise storage_error(
            tr("cannot open {device}", device=DEVICE),
            err,
            hint="a container needs --device /dev/fuse; else its mode should be 0666",
        ) from err


def prepare(path: Path, repaired: Callable[[str], None]) -> None:
    """Check that a directory can be mounted on. A mount of ours whose process died is unmounted.

    Args:
        path: as of `real_path`.
        repaired: told what was unmounted, in a line for people.

    Raises:
        BusyError: something is mounted there.
        NotHereError, UsageError: it is no directory, is not empty, or is another user's.
    """
    while (there := mounted_at(path)) is not None:
        if there.kind != KIND:
            raise BusyError(
                tr(
                    "{source} ({kind}) is mounted at {path}",
                    source=printable(there.source),
                    kind=there.kind,
                    path=path,
                ),
                hint="choose another directory, or unmount it",
            )
        if not is_dead(path):
            raise BusyError(
                tr("p2pcloop is mounted at {path} already", path=path),
                hint=tr("p2pcloop umount {path}", path=path),
            )
        unmount(path)
        repaired(
            tr(
                "the mount at {path} had lost its process: it is unmounted, and mounted anew",
                path=path,
            )
        )
    _check_directory(path)


def is_dead(path: Path) -> bool:
    """Whether a mounted file system of FUSE has no process any more."""
    try:
        path.stat()
    except OSError as err:
        return err.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _check_directory(path: Path) -> None:
    try:
        with os.scandir(path) as entries:
            first = next(entries, None)
    except FileNotFoundError as err:
        raise NotHereError(
            tr("there is no directory {path}", path=path), hint=tr("mkdir -p {path}", path=path)
        ) from err
    except NotADirectoryError as err:
        raise UsageError(
            tr("{path} is no directory", path=path), hint="choose an empty directory"
        ) from err
    except OSError as err:
        raise storage_error(tr("cannot look into {path}", path=path), err) from err
    if first is not None:
        raise UsageError(
            tr("{path} is not empty: what is in it could not be seen", path=path),
            hint="choose an empty directory",
        )
    if not os.access(path, os.W_OK):
        raise UsageError(
            tr("you may not write into {path}, so you may not mount there", path=path),
            hint="choose a directory of your own",
        )


def mount(
    path: Path, *, everyone: bool, name: str = _NAME, options: Sequence[str] = _TREE_OPTIONS
) -> int:
    """Mount a file system of ours; return the descriptor of /dev/fuse.

    Args:
        path: a directory that `prepare` has checked, or a file: then the file system is one file.
        everyone: other users may read it, too.
        name: of its kind; the table of mounts has it behind `fuse.`.
        options: more options of the mount.

    Raises:
        UsageError: fusermount3 refuses.
        NeedsPackageError: it is not installed.
    """
    options = ["nosuid", "nodev", *options, f"fsname={_NAME}", f"subtype={name}"]
    options += ["allow_other"] if everyone else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        words = [str(find_program("fusermount3", "fuse3")), "-o", ",".join(options)]
        done = _run([*words, "--", str(path)], theirs.fileno())
        theirs.close()
        if done.returncode:
            raise _refused(path, done.stderr)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise UsageError(tr("fusermount3 mounted {path}, and passed no descriptor", path=path))
    os.set_inheritable(fds[0], False)
    return fds[0]


def is_connected(fd: int) -> bool:
    """Whether the file system of a descriptor of /dev/fuse still exists: it is mounted, or files of
    it are open (fs/fuse/dev.c, fuse_dev_poll)."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def unmount(path: Path) -> None:
    """Unmount a file system of ours. Files that are open stay open.

    Raises:
        UsageError: fusermount3 refuses.
        NeedsPackageError: it is not installed.
    """
    done = _run(unmount_command(path))
    if done.returncode:
        raise _refused(path, done.stderr)


def unmount_command(path: Path) -> list[str]:
    """The command that unmounts a file system, whether files of it are open or not.

    Raises:
        NeedsPackageError: fusermount3 is not installed.
    """
    return [str(find_program("fusermount3", "fuse3")), "-u", "-z", "--", str(path)]


def check_ours(path: Path) -> None:
    """Check that a file system of ours is mounted at a path.

    Raises:
        NotHereError: nothing is mounted there.
        UsageError: something else is.
    """
    there = mounted_at(path)
    if there is None:
        raise NotHereError(
            tr("nothing is mounted at {path}", path=path), hint="`mount -t fuse.p2pcloop` lists"
        )
    if there.kind != KIND:
        raise UsageError(
            tr("what is mounted at {path} is not p2pcloop's: {kind}", path=path, kind=there.kind),
            hint=tr("umount {path}", path=path),
        )


def _run(words: list[str], fd: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run fusermount3, which passes a descriptor over the socket `fd`."""
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(os.environ) if fd is None else os.environ | {_VARIABLE: str(fd)},
        pass_fds=() if fd is None else (fd,),
        check=False,
    )


def _refused(path: Path, said: bytes) -> UsageError:
    text = printable(said.decode("utf-8", "replace").strip().removeprefix("fusermount3: "))
    if "user_allow_other" in text:
        return UsageError(
            "this system lets only root show a mount to other users",
            hint="leave --allow-other out, or have root write `user_allow_other` into"
            " /etc/fuse.conf",
        )
    return UsageError(
        tr("fusermount3 refuses {path}: {text}", path=path, text=text or tr("without a word"))
    )


def _plain(field: str) -> str:
    """A field of the table of mounts, whose spaces and the like are written as octal numbers."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)
