"""Packages in fresh roots: installed, used, upgraded, removed. See tools/check-packages --help."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from tools import build_deb, build_rpm
from tools.boot_report import read_report
from tools.check_service import check_service
from tools.console import Console, ConsoleError
from tools.fresh_root import USER, Machine, RootError, make_root
from tools.package_tree import CHECKOUT, PackageError

_PROMPT = "tiny# "
_BOOT_LIMIT = 180.0

_OTHERS = re.compile(
    r"/(home|tmp|run|proc|dev|root/\.cache)\b|/var/(cache|log|lib/(apt|dpkg|systemd|rpm))\b"
    r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/etc/(ld\.so\.cache|alternatives/)"
    r"|/__pycache__|/etc/\.pwd\.lock"
)
"""Paths that are not p2pcloop's: homes, caches, and what the package manager writes down."""

_DISTRIBUTIONS = """
import json
from importlib.metadata import distributions
found = {}
for each in distributions():  # of two, the first is what is imported
    found.setdefault(each.metadata["Name"].lower(), [each.version, each.requires or []])
print(json.dumps(found))
"""

_CATALOGUES = """
from pathlib import Path
import p2pcloop
print(*(path.name for path in Path(p2pcloop.__file__).parent.glob("locale/*.po")))
"""

_IMPORT_ALL = """
import importlib, pkgutil
import p2pcloop, p2pcloopd
for package in (p2pcloop, p2pcloopd):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""


class CheckError(Exception):
    """A package does not do what it should."""


@dataclass(frozen=True)
class Case:
    """One kind of package on one distribution.

    Attributes:
        release: of Debian, which the root is made of.
        include: packages that the root has besides.
        build: makes packages of revisions in a folder, quickly.
        install: the words that install or upgrade one, and its dependencies.
        purge: the words that remove it.
        python: the interpreter of the environment.
    """

    release: str
    include: tuple[str, ...]
    build: Callable[[Sequence[str], Path], Iterator[Path]]
    install: tuple[str, ...]
    purge: tuple[str, ...]
    python: str


def _deb(release: str) -> Case:
    return Case(
        release=release,
        include=(),
        build=lambda revisions, out: build_deb.build(release, revisions, out, "gzip"),
        install=("apt-get", "install", "--yes", "--quiet"),
        purge=("apt-get", "purge", "--yes", "p2pcloop"),
        python="/usr/lib/p2pcloop/bin/python3",
    )


CASES = {
    "deb12": _deb("bookworm"),
    "deb13": _deb("trixie"),
    # No release of Fedora is at hand: a root with the same Python, and rpm. The names of the
    # packages on which the RPM depends are Fedora's, so rpm is told not to look for them.
    "rpm": Case(
        release="trixie",
        include=(
            *("rpm", "python3", "user-mode-linux", "busybox-static", "bubblewrap", "libseccomp2"),
            *("libstdc++6", "fuse3", "python3-rich"),
        ),
        build=lambda revisions, out: build_rpm.build("3.13", revisions, out, "w1.gzdio"),
        install=("rpm", "--upgrade", "--nodeps", "--verbose"),
        purge=("rpm", "--erase", "--nodeps", "p2pcloop"),
        python="/usr/lib64/p2pcloop/bin/python3",
    ),
}


class Check:
    """A case on its machine."""

    def __init__(self, name: str, machine: Machine, logs: Path) -> None:
        self.name = name
        self.case = CASES[name]
        self.machine = machine
        self.logs = logs
        self.link = ""

    def tell(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)

    def p2pcloop(self, *words: str, code: int = 0) -> str:
        """Run a command as the ordinary user."""
        return self.machine.run("p2pcloop", *words, user=USER, code=code)

    def install(self, package: Path) -> None:
        """Install a package, or upgrade to it."""
        self.machine.put(package, f"/srv/{package.name}")
        self.machine.run(*self.case.install, f"/srv/{package.name}")
        (self.machine.root / "srv" / package.name).unlink()

    def environment(self) -> None:
        """Every module can be imported; every Python package has what it asks for; texts are
        translated; Tab answers."""
        python = (self.case.python, "-I", "-c")
        self.machine.run(*python, _IMPORT_ALL, user=USER)
        found = json.loads(self.machine.run(*python, _DISTRIBUTIONS, user=USER))
        version = self.machine.run(*python, "import platform; print(platform.python_version())")
        missing = unmet(found, version.strip())
        if missing:
            raise CheckError(f"Python packages lack what they need: {'; '.join(missing)}")
        catalogues = set(self.machine.run(*python, _CATALOGUES, user=USER).split())
        if lacking := {path.name for path in CHECKOUT.glob("p2pcloop/locale/*.po")} - catalogues:
            raise CheckError(f"it lacks catalogues of translations: {', '.join(sorted(lacking))}")
        asked = (
            "_P2PCLOOP_COMPLETE=bash_complete",
            "COMP_WORDS=p2pcloop netboot --la",
            "COMP_CWORD=2",
        )
        completed = self.machine.run("env", *asked, "p2pcloop", user=USER)
        if completed != "plain,--lan\n":
            raise CheckError(f"`p2pcloop netboot --la` is completed to {completed!r}")
        self.tell(f"all modules are there; Python {version.strip()}")

    def main_job(self) -> None:
        """Seed on one node, boot on another, keep a file."""
        told = self.p2pcloop("seed", "tiny.cloop", "--json", "--home", "seeder")
        self.link = json.loads(told)["link"]
        token = secrets.token_hex(8)
        self._boot(self.link, f"echo {token} > /root/hello && sync")
        if self._boot(self.link, "cat /root/hello").strip() != token:
            raise CheckError("the second boot did not find the file that the first one wrote")
        report = read_report(self.machine.root / f"home/{USER}/boot.json")
        self.tell(f"booted from a peer, and again with its overlay: {report.boot_text}")

    def _boot(self, link: str, command: str) -> str:
        words = ["p2pcloop", "boot", link, "--home", "reader", "--overlay", "mine.delta"]
        words += ["--report", "boot.json", "--mem", "128M"]
        console = Console(
            self.machine.words(*words, user=USER),
            log=self.logs / f"{self.name}-console.log",
            errors=self.logs / f"{self.name}-boot.log",
        )
        with console:
            console.expect(_PROMPT, _BOOT_LIMIT)
            output = console.run(command, 60)
            console.send_line("poweroff")
            console.wait(60)
        return output

    def upgrade(self, package: Path) -> None:
        """Upgrade with nodes and a guest that run; the guest and the nodes go on."""
        guest = ("exec", "g1", "--home", "third", "--")
        boot = ("boot", self.link, "--home", "third", "--overlay", "third.delta", "--mem", "128M")
        self.p2pcloop(*boot, "--detach", "--name", "g1")
        self.p2pcloop(*guest, "sh", "-c", "echo before > /root/upgrade")
        self.install(package)
        # The rest of the image is fetched by programs of the version before.
        self.p2pcloop(*guest, "dd", "if=/dev/vda", "of=/dev/null", "bs=64k")
        self.p2pcloop("status", "--home", "third")
        for home in ("third", "seeder"):
            self.p2pcloop("daemon", "stop", "--force", "--home", home)
            self.p2pcloop("daemon", "start", "--home", home)
        drop = "echo 3 > /proc/sys/vm/drop_caches; cat /root/upgrade; dd if=/dev/vda of=/dev/null"
        if "before" not in self.p2pcloop(*guest, "sh", "-c", drop):
            raise CheckError("the guest lost its file in the upgrade")
        self.p2pcloop("stop", "g1", "--home", "third")
        again = ("run", self.link, "--home", "third", "--overlay", "third.delta", "--mem", "128M")
        if "before" not in self.p2pcloop(*again, "--", "cat", "/root/upgrade"):
            raise CheckError("what the guest wrote before the upgrade is not in its overlay")
        self.tell("upgraded with two nodes and a guest that run; the guest and its overlay go on")

    def remove(self, before: set[str]) -> None:
        """Remove the package; only the user's data stays."""
        for home in ("seeder", "reader", "third"):
            self.p2pcloop("daemon", "stop", "--home", home)
        self.machine.run(*self.case.purge)
        left = [path for path in self.machine.files() - before if not _OTHERS.search(path)]
        if left:
            raise CheckError(f"removing leaves {len(left)} files: {', '.join(sorted(left)[:20])}")
        homes = self.machine.run("ls", f"/home/{USER}", user=USER).split()
        if not {"seeder", "reader", "mine.delta"} <= set(homes):
            raise CheckError("removing took the user's data")
        self.tell("removed; nothing is left but the user's data")

    def size(self) -> None:
        """What the package takes, with what is compiled at its installation."""
        compiled = [path for path in self.machine.files() if path.endswith(".pyc")]
        if not any("/p2pcloopd/" in path for path in compiled):
            raise CheckError("its Python files are not compiled: each command would do so again")
        taken = 0
        for place in ("usr/lib/p2pcloop", "usr/lib64/p2pcloop", "usr/share/doc/p2pcloop"):
            for folder, _, names in os.walk(self.machine.root / place):
                taken += sum(Path(folder, name).lstat().st_blocks * 512 for name in names)
        self.tell(f"{taken / 1e6:.1f} MB on the disk")
        if taken > 60e6:
            raise CheckError(f"the package takes {taken / 1e6:.1f} MB, more than 60")


_UNKNOWN = "0.0.0"
"""What the metadata of Debian 13's python3-isal says, whose version is 1.7.2."""


def unmet(found: dict[str, tuple[str, list[str]]], python: str) -> list[str]:
    """What Python packages ask for and do not find.

    Args:
        found: the version and the requirements of each package that is there, by name.
        python: the version of the interpreter.
    """
    plain = {_plain(name): value for name, value in found.items()}
    wanted, missing, seen = ["p2pcloop"], [], set[str]()
    environment = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in plain[name][1]:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({**environment, "extra": ""}):
                continue
            other = _plain(needed.name)
            if other not in plain:
                missing.append(f"{name}: {text}, which is not there")
            elif plain[other][0] != _UNKNOWN and not needed.specifier.contains(plain[other][0]):
                missing.append(f"{name}: {text}, and {plain[other][0]} is there")
            else:
                wanted.append(other)
    return missing


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check(name: str, work: Path, image: Path) -> None:
    """All of one case, on a machine that is made for it."""
    case = CASES[name]
    begun = time.monotonic()
    packages = list(case.build(("1", "2"), work / "packages" / name))
    archive = work / "roots" / f"{name}.tar"
    make_root(case.release, case.include, archive)
    with (
        tempfile.TemporaryDirectory(prefix="p2pcloop-root-", dir=work) as folder,
        Machine(archive, Path(folder) / "root") as machine,
    ):
        checking = Check(name, machine, work)
        if case.install[0] == "apt-get":
            machine.run("apt-get", "update", "--quiet")
        checking.install(packages[0])
        machine.run(*case.purge)  # what it needs stays
        before = {path for path in machine.files() if "p2pcloop" not in path}
        checking.install(packages[0])
        checking.size()
        checking.environment()
        machine.put(image, f"/home/{USER}/tiny.cloop")
        checking.main_job()
        checking.upgrade(packages[1])
        checking.remove(before)
    checking.tell(f"all is well, after {time.monotonic() - begun:.0f} s")


SERVICE = "service"
"""The case that runs the units under systemd."""


def main(args: Sequence[str] | None = None) -> int:
    """Check packages; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/check-packages",
        description="Build each package in two revisions, and in a fresh root of its distribution"
        " install the first, seed and boot as an ordinary user, upgrade while nodes and a guest"
        f" run, and remove it. The case {SERVICE} does so with the units, under the systemd of a"
        " guest. Needs root. Roots are kept in build/packages/check/roots.",
    )
    cases = (*CASES, SERVICE)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(cases)}; else all")
    options = parser.parse_args(args)
    if unknown := set(options.cases) - set(cases):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("it makes roots and namespaces: run it as root")
    work = CHECKOUT / "build/packages/check"
    work.mkdir(parents=True, exist_ok=True)
    try:
        for name in options.cases or cases:
            if name == SERVICE:
                check_service(work, _image(), lambda text: print(f"{SERVICE}: {text}", flush=True))
            else:
                check(name, work, _image())
    except (CheckError, ConsoleError, PackageError, RootError) as err:
        print(f"check-packages: {err}", file=sys.stderr)
        return 1
    return 0


def _image() -> Path:
    words: Iterable[str | Path] = [CHECKOUT / "tools/build-image", "--tiny"]
    built = subprocess.run([*words], stdout=subprocess.PIPE, text=True, check=True)
    return CHECKOUT / built.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
