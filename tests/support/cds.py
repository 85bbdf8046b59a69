"""CD images for tests, made by genisoimage; and the records in their directories, to be changed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from p2pcloop.formats.iso import Iso, read_iso

NAMES = {"Rock Ridge": ("-r",), "Joliet": ("-J",), "ISO 9660": ()}
"""Options of genisoimage for each kind of file names."""


def make_iso(out: Path, files: dict[str, bytes], *options: str) -> Path:
    """Write a CD image with these files."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        for name, data in files.items():
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return make_iso_of(Path(scratch), out, *options)


def make_iso_of(tree: Path, out: Path, *options: str) -> Path:
    """Write a CD image with what is in a folder, links too."""
    command = ["genisoimage", "-quiet", "-no-pad", *options, "-o", str(out), str(tree)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return out


def read_cd(path: Path) -> Iso:
    """Read a CD image with `read_iso`."""
    with path.open("rb") as file:
        return read_iso(file.fileno(), path.stat().st_size)


def record_at(iso: bytes | bytearray, identifier: bytes) -> int:
    """Where the directory record of a file begins (ECMA-119, 9.1): 33 bytes before its name."""
    return iso.index(bytes([len(identifier)]) + identifier) - 32


def join_files(iso: bytearray, first: bytes, second: bytes) -> None:
    """Make two files, one after the other in their folder, one of two extents.

    Above 4 GiB a file has a record for each extent; all but the last have bit 7 of their flags.
    """
    iso[record_at(iso, first) + 25] |= 0x80
    at = record_at(iso, second) + 33
    iso[at : at + len(second)] = first


def move_file(iso: bytearray, identifier: bytes, block: int) -> None:
    """Let a file begin at another block of 2048 bytes."""
    at = record_at(iso, identifier) + 2
    iso[at : at + 8] = block.to_bytes(4, "little") + block.to_bytes(4, "big")


def block_of(iso: bytes | bytearray, identifier: bytes) -> int:
    """At which block of 2048 bytes a file begins."""
    at = record_at(iso, identifier) + 2
    return int.from_bytes(iso[at : at + 4], "little")


def resize_file(iso: bytearray, identifier: bytes, size: int) -> None:
    """Let a file have another length."""
    at = record_at(iso, identifier) + 10
    iso[at : at + 8] = size.to_bytes(4, "little") + size.to_bytes(4, "big")
