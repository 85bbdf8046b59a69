"""Images as others make them: Debian with each of its inits, by mmdebstrap, and a busybox.

Nothing in them is made for p2pcloop; root is locked, as mmdebstrap leaves it. They are made once,
and kept in build/stock under the hash of their recipe: without them, the first run needs a Debian
mirror and some minutes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.tiny_image import fill_root

STOCK = {
    "bookworm": ("bookworm", "systemd-sysv,login"),
    "trixie": ("trixie", "systemd-sysv,login"),
    "sid": ("sid", "systemd-sysv,login"),
    "sysvinit": ("bookworm", "sysvinit-core,login"),
    "openrc": ("bookworm", "sysvinit-core,openrc,login"),
    "runit": ("bookworm", "runit-init,login"),
    "busybox": ("", ""),
}
"""Suite and packages of each; none for the busybox."""

_CACHE = Path(__file__).parents[2] / "build" / "stock"
_BOUND = 900
"""Seconds after which mmdebstrap has failed; on a quiet machine it takes 15."""

_MAKE_ROOT = Path(__file__).with_name("stock-root.sh")
_MAKE_IMAGE = Path(__file__).with_name("stock-image.sh")

_INITTAB = """\
::sysinit:/etc/start
tty1::respawn:/bin/getty 38400 tty1
tty2::respawn:/bin/getty 38400 tty2
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""


def stock_images(names: Iterable[str] = STOCK) -> dict[str, Path]:
    """Return a cloop of each, made where it is not here yet."""
    paths = {name: _CACHE / f"{name}-{_recipe(name)[:12]}.cloop" for name in names}
    _CACHE.mkdir(parents=True, exist_ok=True)
    missing = [name for name, path in paths.items() if not path.exists()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_make, missing, [paths[name] for name in missing]))
    return paths


def _recipe(name: str) -> str:
    scripts = (_MAKE_ROOT.read_text(), _MAKE_IMAGE.read_text())
    words = (*STOCK[name], *scripts, "" if STOCK[name][0] else _INITTAB)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _make(name: str, path: Path) -> None:
    suite, packages = STOCK[name]
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix=".making-") as directory:
        work = Path(directory)
        if suite:
            mode = "root" if os.getuid() == 0 else "unshare"
            _run(work, _MAKE_ROOT, mode, suite, packages)
        else:
            _fill_busybox(work / "root")
        # mke2fs must see the files' true owners (tools/build-image).
        owner = [] if os.getuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--"]
        _run(work, *owner, _MAKE_IMAGE)
        (work / "image.cloop").chmod(0o444)
        shutil.move(work / "image.cloop", path)


def _fill_busybox(root: Path) -> None:
    fill_root(root)
    (root / "etc/inittab").write_text(_INITTAB)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/shadow").write_text("root:*:20000:0:99999:7:::\n")


def _run(work: Path, *command: str | Path) -> None:
    done = subprocess.run(
        command, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=_BOUND, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
