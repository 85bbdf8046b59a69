"""Make a tiny bootable root file system: busybox on ext4, a shell on the console, and a package to
install (/root/hello.deb).

It boots in a second, for tests and for a first look at a guest; the same call with the same
busybox always makes the same bytes. Usage: python -m tools.tiny_image OUT [MIB]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from p2pcloopd.guest.system.kernel import find_busybox
from p2pcloopd.programs import find_program

DEFAULT_SIZE = 16 << 20
PROMPT = "tiny login: "
SHELL_PROMPT = "tiny# "

_TIME = 1_000_000_000
_TIMES = ("atime", "ctime", "mtime", "crtime")
_UUID = "70326963-6c6f-6f70-8000-74696e790001"

_FILES = {
    "etc/inittab": """\
::sysinit:/etc/start
tty0::respawn:-/etc/console
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
""",
    "etc/start": """\
#!/bin/sh
hostname tiny
[ -e /proc/mounts ] || mount -t proc proc /proc
[ -e /sys/block ] || mount -t sysfs sysfs /sys
ip link set lo up
""",
    "etc/console": """\
#!/bin/sh
echo
echo 'tiny login: root (automatic)'
export HOME=/root PATH=/bin:/sbin:/usr/bin PS1='tiny# '
cd
exec sh
""",
    "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "var/lib/dpkg/status": "",
}  # fmt: skip

_DIRECTORIES = (
    *("bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin"),
    "var/lib/dpkg/info",
)
_HELLO_DEB = Path(__file__).with_name("hello-deb")
_EXECUTABLE = ("etc/start", "etc/console")
_SBIN = ("halt", "init", "poweroff", "reboot")


def build_tiny_image(path: Path, *, size: int = DEFAULT_SIZE) -> None:
    """Write the image of `size` bytes to `path`; an older one is replaced.

    Raises:
        NeedsPackageError: busybox-static or e2fsprogs is not installed.
        subprocess.CalledProcessError: the file system does not fit in `size`.
    """
    with tempfile.TemporaryDirectory(prefix="p2pcloop-tiny-") as scratch:
        root = Path(scratch) / "root"
        fill_root(root)
        path.unlink(missing_ok=True)
        with path.open("wb") as image:
            image.truncate(size)
        _make_file_system(path, root)


def fill_root(root: Path) -> None:
    """Put the files of the image into an empty directory."""
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True)
    busybox = root / "bin/busybox"
    shutil.copyfile(find_busybox(), busybox)
    busybox.chmod(0o755)
    for applet in _applets(busybox):
        folder = "sbin" if applet in _SBIN else "bin"
        if applet != "busybox":
            (root / folder / applet).symlink_to("/bin/busybox")
    for name, text in _FILES.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755 if name in _EXECUTABLE else 0o644)
    package = root / "root/hello.deb"
    subprocess.run([_HELLO_DEB, package], check=True)
    package.chmod(0o644)


def _applets(busybox: Path) -> list[str]:
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    return sorted(listing.stdout.split())


def _make_file_system(image: Path, root: Path) -> None:
    environment = os.environ | {"E2FSPROGS_FAKE_TIME": str(_TIME), "TZ": "UTC"}
    options = f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(
        [
            *(find_program("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-b", "4096"),
            *("-U", _UUID, "-L", "tiny", "-m", "0", "-E", options, "-d", root, image),
        ],
        env=environment,
        check=True,
    )
    # The copied files have this user as owner and this minute as time.
    names = ["/", *(f"/{path.relative_to(root)}" for path in sorted(root.rglob("*")))]
    fields = {"uid": 0, "gid": 0} | dict.fromkeys(_TIMES, f"@{_TIME}")
    script = [f"sif {name} {field} {value}" for name in names for field, value in fields.items()]
    script += [f"sif {name} {field}_extra 0" for name in names for field in _TIMES]
    subprocess.run(
        [find_program("debugfs", "e2fsprogs"), "-w", "-f", "-", image],
        input="\n".join(script), env=environment, text=True, capture_output=True, check=True,
    )  # fmt: skip


def main() -> None:
    """Make the image that the command line asks for."""
    size = int(sys.argv[2]) << 20 if len(sys.argv) > 2 else DEFAULT_SIZE
    build_tiny_image(Path(sys.argv[1]), size=size)


if __name__ == "__main__":
    main()
