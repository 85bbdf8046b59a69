"""The pages of unpacked kernels, by the blocks of a state."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from p2pcloop.store.unpacked_kernels import note_use, pages_like
from tests.support.elf_files import elf
from tests.support.states import machine

LOAD, NOTE = 1, 4
CODE = random.Random(1).randbytes(2 * 4096 + 100)
DATA = random.Random(2).randbytes(4096)
KERNEL = elf((LOAD, 0x3000, CODE), (NOTE, 0x9000, DATA), (LOAD, 0x8000, bytes(4096) + DATA))


def kernel(folder: Path, content: bytes = KERNEL, name: str = "vmlinux-1") -> None:
    folder.joinpath(name).write_bytes(content)


def test_a_block_of_the_memory_has_the_page_that_was_loaded_there(tmp_path: Path) -> None:
    kernel(tmp_path)
    state = machine(5 * 4096 + 1, b"devices", memory_length=16 * 4096)
    (page,) = pages_like(state, tmp_path)
    first = 6  # the disk has six blocks
    found = {block - first: page(block) for block in range(first + 18)}
    assert {at: content for at, content in found.items() if content is not None} == {
        3: CODE[:4096],
        4: CODE[4096:8192],
        9: DATA,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KERNEL[:70],
        b"MZ" + KERNEL,
        elf((LOAD, 0, CODE), machine=183),
        KERNEL[:-5000],
        KERNEL[:72] + b"\xff" * 8 + KERNEL[80:],
    ],
    ids=["empty", "no headers", "no ELF", "arm64", "cut off", "far behind the end"],
)
def test_a_file_that_is_no_whole_kernel_has_no_wrong_page(tmp_path: Path, content: bytes) -> None:
    kernel(tmp_path, content)
    kernel(tmp_path, KERNEL, "other")
    pages = pages_like(machine(1, b"devices"), tmp_path)
    found = {page(block) for page in pages for block in range(20)}
    assert found <= {None, CODE[:4096], CODE[4096:8192], DATA}


def test_a_file_that_goes_or_is_emptied_has_no_pages(tmp_path: Path) -> None:
    kernel(tmp_path)
    os.mkfifo(tmp_path / "vmlinux-2")
    (page,) = pages_like(machine(1, b"devices"), tmp_path)
    assert page(4) == CODE[:4096]
    os.truncate(tmp_path / "vmlinux-1", 300)
    assert page(4) is None
    (tmp_path / "vmlinux-1").unlink()
    assert page(4) is None


def test_a_file_whose_pages_are_used_is_young_again(tmp_path: Path) -> None:
    for name in ("vmlinux-1", "vmlinux-2"):
        kernel(tmp_path, name=name)
        os.utime(tmp_path / name, (0, 0))
    pages = pages_like(machine(1, b"devices"), tmp_path)
    assert pages[0](4) == pages[1](4) == CODE[:4096]
    note_use(pages[1])
    young = [path.name for path in tmp_path.iterdir() if path.stat().st_mtime]
    assert young == ["vmlinux-2"], "not one that was only looked at"
    (tmp_path / "vmlinux-1").unlink()
    note_use(pages[0])


def test_without_a_folder_there_is_none(tmp_path: Path) -> None:
    assert pages_like(machine(1, b"devices"), tmp_path / "none") == []
