"""The mount namespace in which bubblewrap starts, and the user that it starts as.

The namespace has tmpfs whose number of files is limited: a million empty files fill a machine's
memory as well, and bubblewrap limits only bytes. If root starts the sandbox, the namespace also has
all files that are handed in, at places that another user can reach. For root's sandboxes run as a
user that nothing else runs as: a process with user number 0 owns the files of /proc and /sys, in
any namespace and without any capability.
"""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import stat
from pathlib import Path

from p2pcloopd.guest.system.scripts import script
from p2pcloopd.programs import find_program

_UNPRIVILEGED_IDS = range(61184, 65520)
"""Users and groups that exist only while something runs as them (systemd's `DynamicUser=`)."""

_STAGE = Path("/sys")
"""The directory of the namespace for what is handed in: every system has it, every user can enter
it, and nothing that is handed in lies below it."""

_SLACK = 1 << 20

_TMPFS_FILES = 64
"""The files of a tmpfs are counted: a million empty ones fill a machine's memory as well."""


class Stage:
    """Collects what a sandbox is to see; `words` is the command that makes it ready."""

    def __init__(self, busybox: Path) -> None:
        self._busybox = str(busybox)
        self._user = _another_user()
        self._room = _SLACK
        self._count = 0
        self._files: list[str] = []
        self._table: list[str] = []

    def tmpfs(self, size: int) -> Path:
        """Return the place of a new tmpfs of at most `size` bytes and 64 files: the sandbox's."""
        place, owner = self._place(), self._user or 0
        owned = f"mode=700,uid={owner},gid={owner}"
        limits = f"nr_inodes={_TMPFS_FILES},size={size}"
        self._table.append(f"p2pcloop {place} tmpfs X-mount.mkdir,{owned},{limits}")
        return place

    def hand_in(self, path: Path) -> Path:
        """Return a place at which the sandbox's user reaches `path`. It can then read a file of the
        host; a socket is given away to it; a directory stays as it is."""
        if self._user is None:
            return path
        status = path.stat()
        if stat.S_ISSOCK(status.st_mode):
            os.chown(path, self._user, self._user)
        elif stat.S_ISREG(status.st_mode) and not _is_for_all(status.st_mode):
            self._room += status.st_size
            place = self._place()
            self._files += [str(path), place.name]
            return place
        if all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents):
            return path
        return self._bind(path, directory=stat.S_ISDIR(status.st_mode))

    def device(self, path: Path) -> Path:
        """Return a place at which the sandbox's user can open a character device of the host."""
        if self._user is None:
            return path
        number, place = path.stat().st_rdev, self._place()
        made = f"device {os.major(number)} {os.minor(number)} {self._user}"
        self._files += [made, place.name]
        return place

    def _bind(self, path: Path, *, directory: bool) -> Path:
        place = self._place()
        if not directory:
            self._files += ["", place.name]
        made = ",X-mount.mkdir" if directory else ""
        self._table.append(f"{_as_field(path)} {place} none rbind{made}")
        return place

    def _place(self) -> Path:
        self._count += 1
        return _STAGE / str(self._count)

    def words(self) -> list[str]:
        """Return the command line that makes the stage and runs what is appended to it.

        Raises:
            NeedsPackageError: a program of util-linux is not installed.
        """
        # util-linux's, which mounts all of a table. (Busybox's has no way to name the table.)
        mount = str(find_program("mount", "mount"))
        words = [self._busybox, "sh", "-c", script("stage"), self._busybox]
        words += [str(_STAGE), str(self._room), mount, "\n".join(self._table), *self._files, "--"]
        namespace = [str(find_program("unshare", "util-linux")), "--mount"]
        namespace += ["--propagation", "private"]
        if self._user is None:
            # Mounting needs root, at least in a user namespace.
            return [*namespace, "--user", "--map-root-user", *words]
        ids = [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        become = [str(find_program("setpriv", "util-linux")), *ids, "--no-new-privs"]
        return [*namespace, *words, *become, "--inh-caps=-all", "--bounding-set=-all"]


def _as_field(path: Path) -> str:
    """Write a path as a field of fstab(5): with its white space, and the backslash, in octal."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in str(path))


def _is_for_all(mode: int) -> bool:
    """Whether all users may read a file, and run it if its owner may."""
    wanted = stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
    return mode & wanted == wanted


def _another_user() -> int | None:
    """Return the number of a user and a group that root's sandbox can run as. None for other users
    than root, and for root in a user namespace that maps none of these numbers."""
    if os.geteuid() != 0:
        return None
    mapped = [_mapped_ids(Path("/proc/self", name)) for name in ("uid_map", "gid_map")]
    # Begin at a random one, and go on if it is taken.
    first = secrets.randbelow(len(_UNPRIVILEGED_IDS))
    candidates: list[int] = [*_UNPRIVILEGED_IDS[first:], *_UNPRIVILEGED_IDS[:first]]
    for candidate in candidates:
        if all(any(candidate in ids for ids in each) for each in mapped) and _is_free(candidate):
            return candidate
    return None


def _mapped_ids(table: Path) -> list[range]:
    lines = [list(map(int, line.split())) for line in table.read_text().splitlines()]
    return [range(first, first + count) for first, _, count in lines]


def _is_free(number: int) -> bool:
    for find in (pwd.getpwuid, grp.getgrgid):
        try:
            find(number)
        except KeyError:
            continue
        return False
    return True
