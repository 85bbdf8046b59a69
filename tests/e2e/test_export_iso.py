"""`p2pcloop export --iso`: a live CD again, with the changes in it, which boots as before."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.client.refs import resolve_ref
from p2pcloop.errors import CorruptError, GuestError, MismatchError, UsageError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import inspect_file, open_local
from tests.support.cds import make_iso, read_cd
from tests.support.leftovers import nothing_left, wait_cleared, wait_staged
from tests.support.programs import Node, Nodes, tool
from tests.support.waiting import BOUND
from tools.knoppix_cd import ISOLINUX, fill_tiny, make_root

pytestmark = pytest.mark.e2e

LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
MBR = Path("/usr/lib/ISOLINUX/isohdpfx.bin")
WORD = b"this CD boots"
CONFIG = "SERIAL 0 115200\nDEFAULT system\nPROMPT 0\nLABEL system\nKERNEL system.bin\n"
SYSTEM = (
    b"\x31\xc0\x8e\xd8"  # xor ax, ax; mov ds, ax
    b"\xbe\x15\x7c"  # mov si, the word's place: it is loaded at 0x7c00
    b"\xac\x84\xc0\x74\x06"  # next: lodsb; test al, al; jz halt
    b"\xba\xf8\x03\xee\xeb\xf5"  # mov dx, 0x3f8; out dx, al; jmp next
    b"\xf4\xeb\xfd" + WORD  # halt: hlt; jmp halt
).ljust(2048, b"\0")
"""An operating system that says a word on the first serial line."""


def to_cloop(image: Path) -> Path:
    cloop = image.with_suffix(".cloop")
    tool("create_compressed_fs", "-q", "-B", "65536", "-L", "1", image, cloop)
    return cloop


def make_hybrid(folder: Path, out: Path) -> None:
    """A CD that boots by BIOS and by UEFI, from a drive and from a stick, with Joliet's names."""
    boot = folder / "boot/isolinux"
    boot.mkdir(parents=True)
    shutil.copy(ISOLINUX, boot)
    shutil.copy(LDLINUX, boot)
    (boot / "isolinux.cfg").write_text(CONFIG)
    (boot / "system.bin").write_bytes(SYSTEM)
    with (folder / "boot/efi.img").open("wb") as file:
        file.truncate(1440 << 10)
    tool("mkfs.vfat", folder / "boot/efi.img")
    tool(
        *("xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", "KNOPPIX_9", "-o", out),
        *("-b", "boot/isolinux/isolinux.bin", "-c", "boot/isolinux/boot.cat"),
        *("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-isohybrid-mbr", MBR),
        *("-eltorito-alt-boot", "-e", "boot/efi.img", "-no-emul-boot", "-isohybrid-gpt-basdat"),
        folder,
    )


def boot_gear(cd: Path) -> str:
    """What makes it boot, as xorriso tells it, without times and identities."""
    told = tool("xorriso", "-indev", cd, "-report_el_torito", "as_mkisofs")
    return re.sub(r"--(modification-date|gpt_disk_guid)[= ]\S+\n|--interval\S+", "", told)


def on_cd(cd: Path, name: str, out: Path) -> Path:
    """A file of the CD, taken out by xorriso."""
    tool("xorriso", "-osirrox", "on", "-indev", cd, "-extract", name, out)
    out.chmod(0o600)
    return out


@pytest.fixture(scope="module")
def knoppix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CD with KNOPPIX and KNOPPIX2, and checksums."""
    top = tmp_path_factory.mktemp("knoppix")
    fill_tiny(top / "root")
    (top / "root/srv").mkdir()
    for name in ("kept", "gone", "changed"):
        (top / "root/srv" / name).write_text("image")
    make_root(top / "root", top / "root.iso")
    make_iso(top / "more.iso", {"usr/share/more": b"more", "srv/second": b"image"}, "-R")
    (top / "cd/KNOPPIX").mkdir(parents=True)
    sums = ""
    for name, image in (("KNOPPIX", "root.iso"), ("KNOPPIX2", "more.iso")):
        cloop = (top / "cd/KNOPPIX" / name).resolve()
        to_cloop(top / image).rename(cloop)
        sums += f"{hashlib.sha1(cloop.read_bytes()).hexdigest()} *KNOPPIX/{name}\n"
    (top / "cd/KNOPPIX/sha1sums").write_text(f"{sums}{'0' * 40} *KNOPPIX/other\n")
    make_hybrid(top / "cd", top / "cd.iso")
    return top / "cd.iso"


@pytest.fixture
def node(nodes: Nodes) -> Iterator[Node]:
    node = nodes.make()
    with nothing_left(node.home.tmp):
        yield node


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "made").mkdir()
    out = tmp_path / "made/new.iso"
    with nothing_left(out.parent, out):
        yield out


def check_boots(cd: Path) -> None:
    """Boot it by BIOS, in QEMU, until its system speaks."""
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64"),
        *("-serial", "stdio", "-net", "none", "-cdrom", str(cd)),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as qemu:
        late = threading.Timer(BOUND, qemu.kill)
        late.start()
        try:
            assert qemu.stdout is not None
            seen = b""
            while WORD not in seen:
                data = os.read(qemu.stdout.fileno(), 4096)
                assert data, seen
                seen += data
        finally:
            late.cancel()
            qemu.kill()
            qemu.wait(BOUND)


def test_a_knoppix_from_a_peer_with_changed_files(
    nodes: Nodes, node: Node, knoppix: Path, tmp_path: Path, out: Path
) -> None:
    """KNOPPIX and KNOPPIX2 become one KNOPPIX, which other programs read."""
    link = nodes.make().json("seed", knoppix)["link"]
    overlay = tmp_path / "mine.delta"
    change = "cd /srv; rm gone; echo mine >changed; echo mine >new; chown 12:34 new; chmod 4755 new"
    node.run("run", link, "--overlay", overlay, "--", "sh", "-c", change)
    facts = node.json("export", link, out, "--iso", "--overlay", overlay)
    assert facts == {"file": str(out), "stored": out.stat().st_size, "image": "KNOPPIX/KNOPPIX"}
    assert boot_gear(out) == boot_gear(knoppix)
    found = read_cd(out)
    assert (found.volume, found.boots) == ("KNOPPIX_9", True)
    assert [image.name for image in found.images] == ["KNOPPIX/KNOPPIX"]
    assert "Joliet" in tool("isoinfo", "-d", "-i", out)

    cloop, root = on_cd(out, "/KNOPPIX/KNOPPIX", tmp_path / "cloop"), tmp_path / "root.iso"
    tool("extract_compressed_fs", cloop, root)
    listed = tool("xorriso", "-indev", root, "-lsl", "/srv")
    assert re.search(r"-rwsr-xr-x +\d+ 12 +34 +5 .* 'new'", listed)
    assert tool("isoinfo", "-R", "-i", root, "-x", "/srv/changed") == "mine\n"
    assert tool("isoinfo", "-R", "-i", root, "-x", "/usr/share/more") == "more"
    assert {"'kept'", "'second'"} <= set(listed.split())
    assert "'gone'" not in listed.split()
    assert "Volume id: KNOPPIX_FS" in tool("isoinfo", "-d", "-i", root)
    sums = on_cd(out, "/KNOPPIX/sha1sums", tmp_path / "sums").read_text().splitlines()
    new = hashlib.sha1(cloop.read_bytes()).hexdigest()
    assert sums == [f"{new} *KNOPPIX/KNOPPIX", f"{'0' * 40} *KNOPPIX/other"]
    check_boots(out)


def test_a_live_cd_with_changed_files(node: Node, tmp_path: Path, out: Path) -> None:
    """A squashfs, as Debian has it; the changes are published, and the version is written."""
    fill_tiny(tmp_path / "root")
    (tmp_path / "root/gone").touch()
    (tmp_path / "cd/live").mkdir(parents=True)
    squashfs = tmp_path / "cd/live/filesystem.squashfs"
    options = ("-all-root", "-quiet", "-no-progress", "-comp", "xz", "-b", "262144")
    tool("mksquashfs", tmp_path / "root", squashfs, *options)
    make_hybrid(tmp_path / "cd", tmp_path / "cd.iso")
    (tmp_path / "changes/etc").mkdir(parents=True)
    (tmp_path / "changes/etc/mine").write_text("mine")
    (tmp_path / "changes/.wh.gone").touch()
    base = node.json("seed", tmp_path / "cd.iso", "--name", "live")["name"]
    overlay = tmp_path / "mine.delta"
    node.run("import", tmp_path / "changes", "--base", base, "--overlay", overlay)
    mine = node.json("publish", overlay, "--name", "mine")["name"]
    node.run("export", mine, out, "--iso")
    assert boot_gear(out) == boot_gear(tmp_path / "cd.iso")
    made = on_cd(out, "/live/filesystem.squashfs", tmp_path / "made.squashfs")
    told = tool("unsquashfs", "-s", made)
    assert "Compression xz" in told
    assert "Block size 262144" in told
    assert tool("unsquashfs", "-cat", made, "etc/mine") == "mine"
    assert "squashfs-root/gone" not in tool("unsquashfs", "-l", made).split()


def test_changed_blocks(node: Node, image: Path, tmp_path: Path, out: Path) -> None:
    """A root that can be written, in a cloop V4.0: what did not change is taken over as it is."""
    cloop = tmp_path / "cd/KNOPPIX/KNOPPIX"
    cloop.parent.mkdir(parents=True)
    node.run("export", image, tmp_path / "v4.cloop", "--codec", "lz4")
    (tmp_path / "v4.cloop").rename(cloop)
    make_hybrid(tmp_path / "cd", tmp_path / "cd.iso")
    cd, overlay = inspect_file(tmp_path / "cd.iso"), tmp_path / "mine.delta"
    opened = open_local(cd, None, lambda _done: None)
    with Overlay.create(overlay, image_id=opened.image_id, image_size=opened.size) as changes:
        changes.write(1 << 20, [memoryview(b"mine" * 1024)])
        changes.prepare_flush()()
    opened.close()
    node.run("export", cd.path, out, "--iso", "--overlay", overlay)
    wanted = bytearray(image.read_bytes())
    wanted[1 << 20 : (1 << 20) + 4096] = b"mine" * 1024
    node.run("export", out, tmp_path / "device.img")
    assert (tmp_path / "device.img").read_bytes() == wanted
    assert "cloop V4.0" in node.run("info", out).out
    assert "lz4" in node.run("info", on_cd(out, "/KNOPPIX/KNOPPIX", tmp_path / "new.cloop")).out


def test_what_did_not_change_is_the_same_cd(
    nodes: Nodes, node: Node, knoppix: Path, out: Path
) -> None:
    link = nodes.make().json("seed", knoppix)["link"]
    assert "there are no changes" in node.run("export", link, out, "--iso").err
    assert out.read_bytes() == knoppix.read_bytes()


def test_a_cd_of_the_store_is_compared_with_its_hashes_first(
    nodes: Nodes, node: Node, knoppix: Path, out: Path
) -> None:
    """Its boot files are no part of the image, whose chunks are compared as they are read."""
    link = nodes.make().json("seed", knoppix)["link"]
    node.run("fetch", link)
    [pack] = node.home.torrents.glob("*/data/*/pack")
    with pack.open("r+b") as file:
        file.seek(pack.read_bytes().index(WORD))
        file.write(b"That")
    said = node.run("export", link, out, "--iso", code=CorruptError.exit_code).err
    assert "pieces of the CD were damaged" in said
    assert not out.exists()
    node.run("export", link, out, "--iso")
    assert out.read_bytes() == knoppix.read_bytes()


def test_a_codec_is_taken_for_a_cd_without_changes(
    node: Node, knoppix: Path, tmp_path: Path, out: Path
) -> None:
    node.run("export", knoppix, out, "--iso", "--codec", "xz")
    assert "xz" in node.run("info", on_cd(out, "/KNOPPIX/KNOPPIX", tmp_path / "new.cloop")).out


@pytest.mark.parametrize("moment", ["root", "image"])
def test_nothing_stays_of_a_cd_that_is_not_written_to_its_end(
    node: Node, knoppix: Path, out: Path, moment: str
) -> None:
    """Killed while a guest joins the files, or while it writes: the next p2pcloopd deletes it,
    once that guest has ended."""
    with node.started("export", knoppix, out, "--iso", "--codec", "xz") as process:
        wait_staged(node.home, f"{moment}*", process)
        process.kill()
        process.wait()
    assert list(out.parent.iterdir()) in ([], [out])  # or it was faster than the signal
    wait_cleared(node.home)


def test_what_joins_the_files_ends_with_the_command(
    node: Node, knoppix: Path, tmp_path: Path
) -> None:
    """That was killed: its end of the pipe is closed."""
    facts = {"type": "iso9660", "volume": "V", "file": str(knoppix), "raw": False, "overlay": None}
    node.home.create()
    with node.home.staging() as folder:
        line = json.dumps(facts | {"made": str(folder / "root")}) + "\n"
        command = [sys.executable, "-m", "p2pcloopd.guest.unseen.joined_root", str(node.home.root)]
        done = subprocess.run(
            command, input=line, env=node.environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == GuestError.exit_code
    assert "the command that the guest worked for has ended" in done.stderr


def test_what_cannot_be_a_cd_is_told(
    node: Node, knoppix: Path, image: Path, tmp_path: Path, out: Path
) -> None:
    def refused(*words: str | Path, code: int = UsageError.exit_code) -> str:
        return node.run("export", *words, code=code).err

    assert "--cd FILE.iso" in refused(image, out, "--iso")
    assert "--cd goes with --iso" in refused(image, out, "--cd", knoppix)
    assert "is no CD image" in refused(image, out, "--iso", "--cd", image)
    assert "written to a file" in refused(knoppix, "/dev/null", "--iso")
    plain = make_iso(tmp_path / "plain.iso", {"sbin/init": b"#!/bin/sh\n"}, "-R")
    assert "its root is the CD itself" in refused(plain, out, "--iso")
    (tmp_path / "files").mkdir()
    tool("mksquashfs", tmp_path / "files", tmp_path / "squashfs", "-quiet", "-no-progress")
    layers = {f"live/{name}.squashfs": (tmp_path / "squashfs").read_bytes() for name in "ab"}
    several = make_iso(tmp_path / "several.iso", layers, "-R")
    assert "the CD's own initramfs joins" in refused(image, out, "--iso", "--cd", several)
    other = tmp_path / "other.delta"
    Overlay.create(other, image_id=bytes(32), image_size=4096).close()
    refused(knoppix, out, "--iso", "--overlay", other, code=MismatchError.exit_code)
    assert not out.exists()


def test_an_image_that_came_without_a_cd_takes_the_boot_files_of_another(
    node: Node, knoppix: Path, image: Path, out: Path
) -> None:
    node.run("export", image, out, "--iso", "--cd", knoppix)
    target = resolve_ref(str(out), node.home)
    assert isinstance(target, ImageFile)
    assert [part.name for part in target.parts] == ["KNOPPIX/KNOPPIX"]
    assert boot_gear(out) == boot_gear(knoppix)
