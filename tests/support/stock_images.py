"""Images as others make them: Debian with each of its inits, by mmdebstrap, and a busybox.

Nothing in them is made for p2pcloop; root is locked, as mmdebstrap leaves it. They are made once,
and kept in build/stock under the hash of their recipe: without them, the first run needs a Debian
mirror and a minute. `python -m tests.support.stock_images` makes all of them beside other work:
a test waits for its image only, and makes it where that failed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tools.desktop_look import LOOKS
from tools.tiny_image import fill_root

STOCK = {
    "bookworm": ("bookworm", "systemd-sysv"),
    "trixie": ("trixie", "systemd-sysv"),
    "sid": ("sid", "systemd-sysv"),
    "sysvinit": ("bookworm", "sysvinit-core"),
    "openrc": ("bookworm", "sysvinit-core,openrc"),
    "runit": ("bookworm", "runit-init"),
    "finit": ("bookworm", "finit-sysv"),
    "busybox": ("", ""),
}
"""Suite and init of each; none for the busybox."""

_CACHE = Path(__file__).parents[2] / "build" / "stock"
_BOUND = 900
"""Seconds after which mmdebstrap has failed; on a quiet machine it takes 15."""

_MAKE_ROOT = Path(__file__).with_name("stock-root.sh")
_MAKE_IMAGE = Path(__file__).with_name("stock-image.sh")
_TOOLS = Path(__file__).parents[2] / "tools"
_BUILD_IMAGE = _TOOLS / "build-image"

# usr-is-merged: else bookworm installs perl, to merge /usr in a system that runs.
_BASE = (
    "--variant=essential", "--include=login,usr-is-merged",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
)  # fmt: skip
_GROWN = ("--variant=custom", "--setup-hook=tar-in base.tar /")
_XTERM = (
    "--variant=extract", "--include=xterm", "--setup-hook=tar-in busybox.tar /", "bookworm",
)  # fmt: skip

_INITTAB = """\
::sysinit:/etc/start
tty1::respawn:/bin/getty 38400 tty1
tty2::respawn:/bin/getty 38400 tty2
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
"""


def stock_image(name: str) -> Path:
    """Return the cloop of one of `STOCK`; make it where it is not here yet."""
    scripts = (_MAKE_ROOT.read_text(), _MAKE_IMAGE.read_text())
    recipe = (*STOCK[name], *scripts, *_BASE, *_GROWN, "" if STOCK[name][0] else _INITTAB)
    return _made(name, recipe, ".cloop", lambda work: _make_image(name, work))


def x_image() -> Path:
    """Return the cloop of the tiny image with xterm and a user ann, and nothing else of X; make it
    where it is not here yet. Its packages are unpacked, not installed."""
    scripts = (_MAKE_ROOT.read_text(), _MAKE_IMAGE.read_text())
    return _made("x", ("ann", *_XTERM, *scripts), ".cloop", _make_x_image)


def desktop_image(kind: str) -> Path:
    """Return the cloop that `tools/build-image --desktop` makes, with `kind` behind it unless that
    is `xfce`; make it where it is not here yet."""
    scripts = [*_TOOLS.glob("customise-de*"), *(_TOOLS / "desktop").rglob("*")]
    files = [_BUILD_IMAGE, *sorted(path for path in scripts if path.is_file())]
    recipe = tuple(path.read_text() for path in files)
    return _made(f"desktop-{kind}", recipe, ".cloop", lambda work: _make_desktop(kind, work))


def _base(suite: str) -> Path:
    """Return a Debian without an init, as a tar file: what several images share."""
    recipe = (suite, _MAKE_ROOT.read_text(), *_BASE)
    return _made(f"base-{suite}", recipe, ".tar", lambda work: _debian(work, *_BASE, suite))


def _made(name: str, recipe: tuple[str, ...], suffix: str, make: Callable[[Path], Path]) -> Path:
    """Return the file of a recipe: what `make` wrote into a scratch directory, now or before."""
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()
    path = _CACHE / f"{name}-{digest[:12]}{suffix}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(_CACHE / f".{name}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=_CACHE, prefix=".making-") as work:
                made = make(Path(work))
                made.chmod(0o444)
                shutil.move(made, path)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes, and threads of this one, from making the same."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_image(name: str, work: Path) -> Path:
    suite, init = STOCK[name]
    if not suite:
        _fill_busybox(work / "root")
    elif sum(suite == other for other, _ in STOCK.values()) == 1:
        _debian(work, *_BASE, f"--include={init}", suite)
    else:
        (work / "base.tar").symlink_to(_base(suite))
        _debian(work, *_GROWN, f"--include={init}", suite)
    return _image_of_root(work)


def _image_of_root(work: Path) -> Path:
    # mke2fs must see the files' true owners (tools/build-image).
    owner = [] if os.getuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--"]
    _run(work, *owner, _MAKE_IMAGE)
    return work / "image.cloop"


def _make_x_image(work: Path) -> Path:
    fill_root(work / "busybox")
    with open(work / "busybox/etc/start", "a") as start:
        start.write("mkdir /dev/pts\nmount -t devpts devpts /dev/pts\n")
    (work / "busybox/tmp").chmod(0o1777)
    with open(work / "busybox/etc/passwd", "a") as users:
        users.write("ann:x:1000:1000:Ann:/tmp:/bin/sh\n")
    _run(work, "tar", "-cf", "busybox.tar", "-C", "busybox", ".")
    _debian(work, *_XTERM)
    return _image_of_root(work)


def _make_desktop(kind: str, work: Path) -> Path:
    name, words = ("desktop", ()) if kind == "xfce" else (f"desktop-{kind}", (kind,))
    _run(work, _BUILD_IMAGE, "--desktop", *words, "--out", work)
    return work / f"{name}.cloop"


def _debian(work: Path, *arguments: str) -> Path:
    mode = "root" if os.getuid() == 0 else "unshare"
    _run(work, _MAKE_ROOT, f"--mode={mode}", *arguments)
    return work / "root.tar"


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


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        stock = (partial(stock_image, name) for name in STOCK)
        makers = [*(partial(desktop_image, kind) for kind in LOOKS), x_image, *stock]
        list(pool.map(lambda make: make(), makers))
