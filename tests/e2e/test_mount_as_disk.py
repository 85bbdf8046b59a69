"""Somebody else's User-Mode Linux boots from the file of a mount, with a COW file of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pcloopd.guest.system import xsave
from p2pcloopd.guest.system.kernel import find_kernel
from p2pcloopd.guest.system.kernel_words import kernel_words
from tests.support.mounts import mounted, needs_fuse
from tests.support.programs import Nodes
from tests.support.waiting import BOUND
from tools.console import Console
from tools.tiny_image import SHELL_PROMPT

pytestmark = [pytest.mark.e2e, needs_fuse]


@contextmanager
def booted(cow: Path, disk: Path) -> Iterator[Console]:
    """A guest whose root is `disk`, and whose changes go to `cow`, as ubd keeps them."""
    kernel = find_kernel()
    environment = dict(os.environ)
    if xsave.is_needed(kernel):
        environment["LD_PRELOAD"] = str(xsave.compiled_shim())
    # Only the end of a process namespace ends all of UML.
    argv = ["bwrap", "--unshare-pid", "--die-with-parent", "--dev-bind", "/", "/", str(kernel.path)]
    argv += ["mem=128M", f"uml_dir={cow.parent}", f"ubd0={cow},{disk}", "root=/dev/ubda", "rw"]
    argv += ["con=null", "con0=fd:0,fd:1", "console=tty0", "noreboot", *kernel_words(kernel)]
    log, errors = cow.with_suffix(".log"), cow.with_suffix(".err")
    with Console(argv, log=log, errors=errors, env=environment, patience=0) as console:
        console.expect(SHELL_PROMPT, BOUND)
        yield console
        console.send_line("poweroff")
        console.wait(BOUND)


def test_changes_lie_beside_it(nodes: Nodes, cloop: Path, image: Path, tmp_path: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    seeded = seeder.seed(cloop, "tiny")
    reader.run("info", seeded["link"])
    cow = tmp_path / "guest.cow"
    with mounted(reader, tmp_path / "p2p"):
        disk = tmp_path / "p2p" / seeded["name"] / "versions" / "1" / "disk.img"
        with booted(cow, disk) as guest:
            guest.run("echo kept > /root/mine && sync", BOUND)
        with booted(cow, disk) as guest:
            assert guest.run("cat /root/mine", BOUND).split() == ["kept"]
        # It was read through the kernel's page cache, and is what was seeded.
        assert (
            hashlib.sha256(disk.read_bytes()).digest()
            == hashlib.sha256(image.read_bytes()).digest()
        )
