"""The files of a package, as they lie when it is installed: what Debian's and Fedora's share.

Below `LIBDIR/p2pcloop` is a virtual environment of the system's Python. It holds p2pcloop, and the
Python packages that the distribution lacks or has too old (package/python-packages.txt); all others
are the distribution's. docs/packaging.md gives the reasons.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

from click import Context, shell_completion

from p2pcloop import __version__
from p2pcloop.cli.completion import make_table
from p2pcloop.cli.main import cli
from p2pcloopd.guest.system.preload import compile_all
from tools.man_pages import write_pages

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = CHECKOUT / "package"
PYTHON_PACKAGES = SOURCES / "python-packages.txt"

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
"""Wheels that run with the C library of Debian 12 (2.36) and of any later release."""

_TIMEOUT = 900.0


class PackageError(Exception):
    """A package cannot be built; the message says why."""


@dataclass(frozen=True)
class Layout:
    """What differs between distributions.

    Attributes:
        python: the version of the system's Python: "3.11".
        distribution: the Python packages that are the distribution's own, in its good version.
        libdir: where programs have files of their own.
        zsh: where completion for zsh lies.
        licences: where licences lie; None: in the folder of the documentation.
    """

    python: str
    distribution: frozenset[str]
    libdir: str
    zsh: str
    licences: str | None = None


@dataclass(frozen=True)
class Bundled:
    """A Python package that the environment brings.

    Attributes:
        licence: as its metadata tells it.
        texts: the files with its licence.
    """

    name: str
    version: str
    licence: str
    texts: tuple[Path, ...]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout into a folder."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=CHECKOUT)
    return next(folder.glob(f"p2pcloop-{__version__}-*.whl"))


def stage(root: Path, layout: Layout) -> list[Bundled]:
    """Put all files of a package below `root`; return the Python packages that it brings.

    Raises:
        PackageError: a program or a registry refused.
    """
    bundled = _environment(root, layout)
    _programs(root, layout)
    _documentation(root, layout, bundled)
    write_completion(root, layout)
    write_plain_files(root, layout)
    return bundled


def write_plain_files(root: Path, layout: Layout) -> None:
    """Put the files of package/ in their places."""
    _put(root, f"{layout.libdir}/p2pcloop/open", SOURCES / "desktop/open.py", layout, 0o755)
    for path, source in _PLAIN_FILES.items():
        _put(root, path, SOURCES / source, layout)


_APPLICATION = "org.p2pcloop.p2pcloop"
_PLAIN_FILES = {
    "/etc/p2pcloop/config.toml": "etc/config.toml",
    "/etc/p2pcloop/node.toml": "etc/node.toml",
    "/usr/lib/systemd/system/p2pcloopd.service": "systemd/system/p2pcloopd.service",
    "/usr/lib/systemd/user/p2pcloopd.service": "systemd/user/p2pcloopd.service",
    "/usr/lib/systemd/user/p2pcloopd.socket": "systemd/user/p2pcloopd.socket",
    "/usr/lib/sysusers.d/p2pcloop.conf": "systemd/sysusers.conf",
    "/usr/lib/tmpfiles.d/p2pcloop.conf": "systemd/tmpfiles.conf",
    "/usr/share/mime/packages/p2pcloop.xml": "desktop/p2pcloop-mime.xml",
    f"/usr/share/applications/{_APPLICATION}.desktop": f"desktop/{_APPLICATION}.desktop",
    f"/usr/share/metainfo/{_APPLICATION}.metainfo.xml": f"desktop/{_APPLICATION}.metainfo.xml",
    f"/usr/share/icons/hicolor/scalable/apps/{_APPLICATION}.svg": f"desktop/{_APPLICATION}.svg",
}
"""Files that are taken over: where each lies, and what it is made of."""


def fill_in(text: str, layout: Layout) -> str:
    """Put the places of a layout into the text of a file of package/."""
    names = {
        "@LIBDIR@": layout.libdir,
        "@PYTHON@": f"{layout.libdir}/p2pcloop/bin/python3",
        "@PYTHON_VERSION@": layout.python,
    }
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def installed_kilobytes(root: Path) -> int:
    """What the files below a folder take, as dpkg counts it: each in whole kilobytes."""
    sizes = [
        1 if p.is_dir() or p.is_symlink() else -(-p.stat().st_size // 1024) for p in _all(root)
    ]
    return sum(sizes)


def _all(root: Path) -> Iterator[Path]:
    yield from sorted(root.rglob("*"))


def site_packages(layout: Layout) -> str:
    """Where the environment has its Python packages."""
    return f"{layout.libdir}/p2pcloop/lib/python{layout.python}/site-packages"


def pinned(layout: Layout) -> list[str]:
    """What the environment brings, as pip takes it: `name==version`."""
    lines = [line.partition("#")[0].strip() for line in PYTHON_PACKAGES.read_text().splitlines()]
    return [line for line in lines if line and line.partition("==")[0] not in layout.distribution]


def _environment(root: Path, layout: Layout) -> list[Bundled]:
    site = _below(root, site_packages(layout))
    site.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        _pip(site, layout, [build_wheel(Path(scratch))])
    if packages := pinned(layout):
        _pip(site, layout, packages)
    drop_unused(site)
    bundled = [_describe(info) for info in sorted(site.glob("*.dist-info"))]
    shutil.rmtree(site / "bin", ignore_errors=True)
    for library in [*site.rglob("*.so"), *site.rglob("*.so.*")]:
        run(["strip", "--strip-unneeded", library])
        library.chmod(0o644)
    compile_all(site / "p2pcloopd/guest/resources/compiled")
    table = make_table(Context(cli, info_name="p2pcloop"))
    (site / "p2pcloop/cli/completion.json").write_text(json.dumps(table))
    home = _below(root, f"{layout.libdir}/p2pcloop")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to(f"/usr/bin/python{layout.python}")
    return [each for each in bundled if each.name != "p2pcloop"]


_UNUSED = ("*.pyi", "*.pxd", "*.pyx", "*.dist-info/sboms/*", "zstandard/*cffi*", "trio/**/_tests")
"""What no program loads: types, sources of compiled modules, lists for auditors, the second of two
implementations of zstandard, and trio's own tests."""


def drop_unused(site: Path) -> None:
    """Delete what is never loaded of Python packages: also a source beside its compiled module."""
    sources = {path.with_name(f"{path.name.partition('.')[0]}.py") for path in site.rglob("*.so")}
    unused = [path for pattern in _UNUSED for path in site.rglob(pattern)]
    for path in {*unused, *(source for source in sources if source.exists())}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have been a part of a folder


def _pip(site: Path, layout: Layout, wanted: Iterable[str | Path]) -> None:
    """Install wheels for the layout's Python, which need not be here."""
    target: list[str | Path] = ["--target", site, "--upgrade", "--python-version", layout.python]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--no-compile", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    run([*pip, *options, "--root-user-action=ignore", "--implementation", "cp", *target, *wanted])


_LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")


def _describe(info: Path) -> Bundled:
    metadata = message_from_string((info / "METADATA").read_text())
    name = metadata["Name"]
    classified = [
        value.rpartition(" :: ")[2]
        for value in metadata.get_all("Classifier", [])
        if value.startswith("License :: ")
    ]
    licence = metadata["License-Expression"] or metadata["License"] or " OR ".join(classified)
    own = SOURCES / "licences" / f"{name}.txt"
    texts = [p for p in sorted(info.rglob("*")) if p.name.upper().startswith(_LICENCE_FILES)]
    found = tuple(path for path in [*texts, own] if path.is_file())
    if not licence or not found:
        raise PackageError(f"{name} does not tell its licence: put it into package/licences")
    return Bundled(name, metadata["Version"], " ".join(licence.split()), found)


_SCRIPTS = {
    "p2pcloop": """\
#!@PYTHON@ -I
import os
import sys

if "_P2PCLOOP_COMPLETE" in os.environ:
    from p2pcloop.cli.completion import answer_shell

    if answer_shell():
        sys.exit()

from p2pcloop.cli.main import main

sys.exit(main())
""",
    "p2pcloopd": """\
#!@PYTHON@ -I
import sys

from p2pcloopd.node.main import main

sys.exit(main())
""",
}


def _programs(root: Path, layout: Layout) -> None:
    for name, script in _SCRIPTS.items():
        program = _below(root, f"/usr/bin/{name}")
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(fill_in(script, layout))
        program.chmod(0o755)


def _documentation(root: Path, layout: Layout, bundled: Iterable[Bundled]) -> None:
    doc = _below(root, "/usr/share/doc/p2pcloop")
    shutil.copytree(CHECKOUT / "docs", doc / "docs", ignore=shutil.ignore_patterns("measurements"))
    shutil.copytree(CHECKOUT / "examples", doc / "examples")
    shutil.copy(CHECKOUT / "README.md", doc)
    _compress(CHECKOUT / "CHANGELOG.md", doc / "changelog.gz")
    licences = doc / "licences" if layout.licences is None else _below(root, layout.licences)
    licences.mkdir(parents=True, exist_ok=True)
    shutil.copy(CHECKOUT / "LICENSE", licences / "p2pcloop.txt")
    for package in bundled:
        parts = [text.read_text().strip() for text in package.texts]
        (licences / f"{package.name}.txt").write_text("\n\n".join(parts) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        for page in write_pages(Path(scratch)):
            _compress(page, _below(root, f"/usr/share/man/man1/{page.name}.gz"))


def write_completion(root: Path, layout: Layout) -> None:
    """Write completion in three shells, as click makes it."""
    places = {
        "bash": "/usr/share/bash-completion/completions/p2pcloop",
        "zsh": f"{layout.zsh}/_p2pcloop",
        "fish": "/usr/share/fish/vendor_completions.d/p2pcloop.fish",
    }
    for shell, place in places.items():
        kind = shell_completion.get_completion_class(shell)
        assert kind is not None
        # click's own `source` asks the shell of this machine for its version; it need not be here.
        made = kind(cli, {}, "p2pcloop", "_P2PCLOOP_COMPLETE")
        text = made.source_template % made.source_vars()
        path = _below(root, place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.strip() + "\n")


def _put(root: Path, place: str, source: Path, layout: Layout, mode: int = 0o644) -> None:
    path = _below(root, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(fill_in(source.read_text(), layout))
    path.chmod(mode)


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _compress(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def run(command: Iterable[str | Path], cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError as err:
        raise PackageError(f"{words[0]} is not installed: tools/setup installs it") from err
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}".strip()
        raise PackageError(f"`{' '.join(words)}` failed:\n{said}")
    return done.stdout


@contextmanager
def plain_modes(root: Path) -> Iterator[None]:
    """Have what is made below `root` be readable for all, whatever the umask of the user is."""
    yield
    for path in [root, *_all(root)]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
