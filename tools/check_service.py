"""The units of a package under systemd: in a guest of an image that has the package installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tools import build_deb
from tools.fresh_root import USER, Machine, RootError, make_root

_P2PCLOOP = Path(sys.executable).with_name("p2pcloop")
_TIMEOUT = 600.0
_SYSTEM_HOME = "/var/lib/p2pcloop"
_INCLUDE = ("systemd-sysv", "dbus", "libpam-systemd", "udev", "kmod", "iproute2")

_WAIT = """
for _ in $(seq 300); do
    case $(systemctl is-system-running 2>/dev/null) in running | degraded) exit ;; esac
    sleep 1
done
exit 1
"""
"""A guest takes commands before its systemd does."""


class Booted:
    """A guest that runs in the background, until the context is left."""

    def __init__(self, image: Path, home: Path) -> None:
        """Boot `image`; `home` is of the node that holds the guest."""
        self._home = home
        self._p2pcloop("boot", image, "--detach", "--name", "service", "--mem", "768M")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._p2pcloop("stop", "service")
        self._p2pcloop("daemon", "stop")

    def run(self, *command: str, user: str = "root") -> str:
        """Run a command in the guest; return its output.

        Raises:
            RootError: it fails.
        """
        words = list(command)
        if user != "root":
            home = _SYSTEM_HOME if user == "p2pcloop" else f"/home/{user}"
            become = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "env"]
            words = [
                *become,
                f"--chdir={home}",
                f"HOME={home}",
                "XDG_RUNTIME_DIR=/run/user/1000",
                *words,
            ]
        return self._p2pcloop("exec", "service", "--", *words)

    def _p2pcloop(self, *words: str | Path) -> str:
        done = subprocess.run(
            [_P2PCLOOP, *words],
            env=os.environ | {"P2PCLOOP_HOME": str(self._home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            shown = " ".join(map(str, words))
            raise RootError(f"`p2pcloop {shown}` failed:\n{done.stdout}{done.stderr[-3000:]}")
        return done.stdout


def check_service(work: Path, image: Path, tell: Callable[[str], None]) -> None:
    """Start, use, upgrade and remove the system's node and a user's node on Debian 12.

    Raises:
        RootError: systemd or p2pcloopd refuse.
    """
    packages = list(build_deb.build("bookworm", "12", work / "packages/service", "gzip"))
    archive = work / "roots/service.tar"
    make_root("bookworm", _INCLUDE, archive)
    with tempfile.TemporaryDirectory(prefix="p2pcloop-service-", dir=work) as folder:
        disk = Path(folder) / "disk.img"
        _make_disk(archive, Path(folder) / "root", [*packages, image], disk)
        with Booted(disk, Path(folder) / "home") as guest:
            guest.run("sh", "-c", _WAIT)
            _system_node(guest, tell)
            _user_node(guest, tell)
            _upgrade(guest, f"/srv/{packages[1].name}", tell)


def _make_disk(archive: Path, root: Path, files: list[Path], disk: Path) -> None:
    with Machine(archive, root) as machine:
        for file in files:
            machine.put(file, f"/srv/{file.name}")
        machine.run("apt-get", "update", "--quiet")
        install = ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends")
        machine.run(*install, f"/srv/{files[0].name}")
        (root / "usr/sbin/policy-rc.d").unlink()
        words = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "1500M"]
        subprocess.run(words, check=True, timeout=_TIMEOUT, stdout=subprocess.DEVNULL)


def _system_node(guest: Booted, tell: Callable[[str], None]) -> None:
    guest.run("systemctl", "enable", "--now", "p2pcloopd.service")  # waits for READY=1
    at = ("--home", _SYSTEM_HOME, "--json")
    told = guest.run("p2pcloop", "seed", "/srv/tiny.cloop", *at, user="p2pcloop")
    link = json.loads(told)["link"]
    guest.run("p2pcloop", "fetch", link, "--home", "reader", user=USER)
    guest.run("p2pcloop", "daemon", "stop", "--home", "reader", user=USER)
    tell("the system's node starts in its sandbox; another node fetches an image from it")


def _user_node(guest: Booted, tell: Callable[[str], None]) -> None:
    guest.run("loginctl", "enable-linger", USER)
    systemctl = ("systemctl", "--user")
    for _ in range(60):  # its manager is about to start
        try:
            guest.run(*systemctl, "enable", "--now", "p2pcloopd.socket", user=USER)
            break
        except RootError:
            time.sleep(1)
    status = json.loads(guest.run("p2pcloop", "daemon", "status", "--json", user=USER))
    pid = guest.run(*systemctl, "show", "-P", "MainPID", "p2pcloopd.service", user=USER)
    if int(pid) != status["pid"]:
        raise RootError(f"p2pcloopd is process {status['pid']}, and systemd's is {pid}")
    guest.run("p2pcloop", "daemon", "stop", user=USER)
    guest.run("p2pcloop", "daemon", "status", user=USER)
    tell("a user's node is started by the first command, and again after `daemon stop`")


def _upgrade(guest: Booted, package: str, tell: Callable[[str], None]) -> None:
    show = ("systemctl", "show", "-P", "MainPID", "p2pcloopd.service")
    before = guest.run(*show)
    guest.run("dpkg", "--install", package)
    if guest.run(*show) in (before, "0\n"):
        raise RootError("the upgrade did not restart the system's node")
    images = guest.run("p2pcloop", "images", "--home", _SYSTEM_HOME, user="p2pcloop")
    if "tiny" not in images:
        raise RootError(f"the system's node has lost its image: {images}")
    guest.run("dpkg", "--purge", "p2pcloop")
    guest.run("sh", "-c", f"test -d {_SYSTEM_HOME}/keys && ! test -e /etc/p2pcloop")
    guest.run("sh", "-c", "! systemctl is-active p2pcloopd.service")
    tell("the upgrade restarts the system's node; purging stops it and leaves its keys and images")
