"""An RPM of this checkout, in Fedora's layout: see tools/build-rpm --help."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from p2pcloop import __version__
from tools.package_tree import (
    CHECKOUT,
    SOURCES,
    Bundled,
    Layout,
    PackageError,
    fill_in,
    plain_modes,
    run,
    stage,
)

PYTHONS = ("3.12", "3.13")
"""Those for which all wheels exist. Fedora 41 and 42 have 3.13, RHEL 10 has 3.12."""

RECOMMENDED = frozenset({"rich"})
"""Python packages that one command needs, and that the spec file recommends as Fedora's own."""


def layout(python: str) -> Layout:
    """Where Fedora has what."""
    return Layout(
        python=python,
        distribution=RECOMMENDED,
        libdir="/usr/lib64",
        zsh="/usr/share/zsh/site-functions",
        licences="/usr/share/licenses/p2pcloop",
    )


def spec(place: Layout, revision: str, bundled: Sequence[Bundled]) -> str:
    """The spec file of the package."""
    provides = [f"Provides: bundled(python3dist({b.name})) = {b.version}" for b in bundled]
    values = {
        "@VERSION@": __version__,
        "@RELEASE@": f"{revision}.py{place.python.replace('.', '')}",
        "@LICENCES@": licences(bundled),
        "@PROVIDES@": "\n".join(provides),
    }
    text = fill_in((SOURCES / "rpm/p2pcloop.spec").read_text(), place)
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def licences(bundled: Iterable[Bundled]) -> str:
    """The licences of p2pcloop and of all that it brings, as an SPDX expression."""
    found = sorted({_SPDX.get(each.licence, each.licence) for each in bundled})
    terms = [f"({each})" if " OR " in each else each for each in found]
    return " AND ".join(["GPL-2.0-or-later", *terms])


_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "MIT OR Apache-2.0": "Apache-2.0 OR MIT",
}
"""What metadata says that is no SPDX identifier, or is one in another order."""


def file_list(root: Path) -> Iterator[str]:
    """The lines of %files: all files, and the folders that are this package's alone."""
    for path in sorted(root.rglob("*")):
        name = f"/{path.relative_to(root)}"
        if path.is_symlink() or path.is_file():
            mark = "%config(noreplace) " if name.startswith("/etc/") else ""
            mark = "%doc " if name.startswith(("/usr/share/doc/", "/usr/share/man/")) else mark
            mark = "%license " if name.startswith("/usr/share/licenses/") else mark
            yield f'{mark}"{name}"'
        elif re.search(r"/p2pcloop(/|$)", name):
            yield f'%dir "{name}"'


def build(
    python: str, revisions: Sequence[str], out: Path, payload: str = "w19.zstdio"
) -> Iterator[Path]:
    """Build the package for a version of Python, in each of some revisions; yield the files.

    Args:
        payload: how it is compressed, as rpm names it.

    Raises:
        PackageError: it cannot be built.
    """
    place = layout(python)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="p2pcloop-rpm-") as scratch:
        work = Path(scratch)
        root = work / "tree"
        with plain_modes(root):
            bundled = stage(root, place)
        (work / "files").write_text("\n".join(file_list(root)) + "\n")
        for revision in revisions:
            (work / "p2pcloop.spec").write_text(spec(place, revision, bundled))
            defined = {
                "_topdir": work / "rpmbuild",
                "tree": root,
                "file_list": work / "files",
                "_libdir": place.libdir,
                "_rpmdir": work / "done",
                "_binary_payload": payload,
            }
            words = [word for name, value in defined.items() for word in ("-D", f"{name} {value}")]
            run(["rpmbuild", "-bb", "--target", "x86_64-linux", *words, work / "p2pcloop.spec"])
            [built] = (work / "done").rglob("*.rpm")
            yield Path(shutil.move(built, out / built.name))


def main(args: Sequence[str] | None = None) -> int:
    """Build the package; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/build-rpm",
        description="Build an RPM of this checkout in Fedora's layout, and print its path.",
    )
    parser.add_argument(
        "--python",
        choices=PYTHONS,
        default="3.13",
        help="the version of the distribution's Python (default 3.13)",
    )
    parser.add_argument(
        "--revision", default="1", metavar="N", help="of the package, for p2pcloop's version"
    )
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build/packages", metavar="DIR")
    options = parser.parse_args(args)
    os.umask(0o022)
    try:
        print(*build(options.python, [options.revision], options.out))
    except PackageError as err:
        print(f"build-rpm: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
