"""Debian packages of this checkout: see tools/build-deb --help."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pcloop import __version__
from tools.package_tree import (
    CHECKOUT,
    SOURCES,
    Bundled,
    Layout,
    PackageError,
    fill_in,
    installed_kilobytes,
    plain_modes,
    run,
    stage,
)


@dataclass(frozen=True)
class Release:
    """A release of Debian.

    Attributes:
        number: as versions of packages name it.
        python: the version of its Python; wheels are for one version.
        distribution: Python package → Debian package that has it, new enough for pyproject.toml.
    """

    number: int
    python: tuple[int, int]
    distribution: dict[str, str]

    @property
    def layout(self) -> Layout:
        return Layout(
            python="{}.{}".format(*self.python),
            distribution=frozenset(self.distribution),
            libdir="/usr/lib",
            zsh="/usr/share/zsh/vendor-completions",
        )


RELEASES = {
    "bookworm": Release(
        12,
        (3, 11),
        {
            "click": "python3-click",
            "h11": "python3-h11",
            "idna": "python3-idna",
            "lz4": "python3-lz4",
            "msgpack": "python3-msgpack",
            "outcome": "python3-outcome",
            "rich": "python3-rich",
            "sortedcontainers": "python3-sortedcontainers",
        },
    ),
    "trixie": Release(
        13,
        (3, 13),
        {
            # What these need (attrs, cffi, …) is theirs to depend on.
            **dict.fromkeys(["attrs", "idna", "outcome", "sniffio", "sortedcontainers"], ""),
            **dict.fromkeys(["cffi", "pycparser"], ""),
            "click": "python3-click",
            "cryptography": "python3-cryptography",
            "h11": "python3-h11",
            "ifaddr": "python3-ifaddr",
            "isal": "python3-isal",
            "lz4": "python3-lz4",
            "msgpack": "python3-msgpack",
            "platformdirs": "python3-platformdirs",
            "rich": "python3-rich",
            "tomlkit": "python3-tomlkit",
            "trio": "python3-trio",
            "zeroconf": "python3-zeroconf",
            "zstandard": "python3-zstandard",
        },
    ),
}

RECOMMENDS = (
    *("user-mode-linux", "busybox-static", "bubblewrap", "libseccomp2", "libslirp-helper"),
    *("dnsmasq-base", "nftables", "e2fsprogs", "fuse3", "liblzo2-2", "qemu-utils"),
    *("squashfs-tools", "mount", "ca-certificates"),
)
"""What guests, mounts and images of some kinds need; a node that seeds needs none of it."""

SUGGESTS = (
    *("qemu-system-x86", "ovmf", "tigervnc-standalone-server", "xserver-xephyr", "x11-xkb-utils"),
    *("novnc", "ipxe", "kmod", "xorriso"),
)
"""For `--vm qemu`, `--display`, `netboot` and `export --iso`."""

_DESCRIPTION = """\
boot compressed disk images from peers
 p2pcloop boots a compressed disk image in User-Mode Linux or QEMU while the
 image is still arriving from other computers. The guest's reads decide what
 is fetched first, and every byte is verified before the guest sees it. The
 guest's changes are kept in a file of their own, and can be passed on.
 .
 A .cloop file, or the image of a KNOPPIX or another live CD, is served where
 it lies. Any BitTorrent client can help to spread an image."""


def control(release: Release, version: str, kilobytes: int) -> str:
    """The control file of the package."""
    major, minor = release.python
    depends = [f"python3 (>= {major}.{minor}~)", f"python3 (<< {major}.{minor + 1})"]
    depends += ["libc6 (>= 2.36)"]
    depends += sorted({package for package in release.distribution.values() if package})
    if "libtorrent" not in release.distribution:
        depends += ["libgcc-s1", "libstdc++6 (>= 12)"]
    fields = {
        "Package": "p2pcloop",
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "The p2pcloop developers <p2pcloop@localhost>",
        "Installed-Size": str(kilobytes),
        "Section": "net",
        "Priority": "optional",
        "Depends": ", ".join(depends),
        "Recommends": ", ".join(RECOMMENDS),
        "Suggests": ", ".join(SUGGESTS),
        "Description": _DESCRIPTION,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def copyright_file(bundled: Iterable[Bundled]) -> str:
    """debian/copyright: the licences of p2pcloop, and of each Python package that it brings."""
    head = (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: p2pcloop\n"
    )
    ours = (
        "Files: *\nCopyright: The p2pcloop developers\nLicense: GPL-2.0-or-later\n"
        " See /usr/share/common-licenses/GPL-2.\n"
    )
    others = [
        f"Files: usr/lib/p2pcloop/lib/*/{package.name}/*\n"
        f"Copyright: see licences/{package.name}.txt beside this file\n"
        f"License: {package.licence}\n"
        f" {package.name} {package.version}; the text is licences/{package.name}.txt.\n"
        for package in bundled
    ]
    return "\n".join([head, ours, *others])


def build(
    name: str, revisions: Sequence[str], out: Path, compression: str = "xz"
) -> Iterator[Path]:
    """Build the package for a release, in each of some revisions; yield the files.

    Raises:
        PackageError: it cannot be built.
    """
    release = RELEASES[name]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="p2pcloop-deb-") as scratch:
        root = Path(scratch) / "root"
        with plain_modes(root):
            bundled = stage(root, release.layout)
            doc = root / "usr/share/doc/p2pcloop"
            (doc / "copyright").write_text(copyright_file(bundled))
            (doc / "changelog.gz").rename(doc / "NEWS.gz")
        kilobytes = installed_kilobytes(root)
        for revision in revisions:
            version = f"{__version__}-{revision}~deb{release.number}u1"
            _write_control(root, release, control(release, version, kilobytes))
            file = out / f"p2pcloop_{version}_amd64.deb"
            pack = ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build"]
            run([*pack, root, file])
            shutil.rmtree(root / "DEBIAN")
            yield file


def _write_control(root: Path, release: Release, fields: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(p.read_bytes()).hexdigest()}  {p.relative_to(root)}\n" for p in files]
    folder = root / "DEBIAN"
    folder.mkdir()
    (folder / "control").write_text(fields)
    (folder / "md5sums").write_text("".join(sums))
    settings = [
        f"/{path.relative_to(root)}\n" for path in files if path.is_relative_to(root / "etc")
    ]
    (folder / "conffiles").write_text("".join(settings))
    for name in ("postinst", "prerm", "postrm"):
        script = folder / name
        script.write_text(fill_in((SOURCES / "debian" / name).read_text(), release.layout))
        script.chmod(0o755)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def main(args: Sequence[str] | None = None) -> int:
    """Build packages; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/build-deb",
        description="Build a Debian package of this checkout, and print its path. One package is"
        " for one release: the compiled Python packages in it are for the release's Python.",
    )
    parser.add_argument(
        "--release",
        choices=[*RELEASES, "all"],
        default="bookworm",
        help="the release that it is for: Debian 12 (bookworm, the default), 13 (trixie), or each",
    )
    parser.add_argument(
        "--revision", default="1", metavar="N", help="of the package, for p2pcloop's version"
    )
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build/packages", metavar="DIR")
    options = parser.parse_args(args)
    try:
        for name in RELEASES if options.release == "all" else [options.release]:
            print(*build(name, [options.revision], options.out))
    except PackageError as err:
        print(f"build-deb: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
