"""`p2pcloop export` of files that lie here: the whole image, or nothing."""

import io
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.formats import cloop_writer
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.cloop_writer import CloopForm, write_cloop
from p2pcloop.formats.overlay import Overlay
from p2pcloop.making.local import inspect_file, open_local
from tests.support.command import Run
from tests.support.images import ignore, make_image, padded, write_cloop_file
from tests.support.programs import tool
from tests.support.waiting import BOUND

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices are root's")

RAW = make_image((3 << 20) + 300_000)


@pytest.fixture
def cloop(tmp_path: Path) -> Path:
    return write_cloop_file(tmp_path / "a.cloop", RAW)


@pytest.fixture
def overlay(tmp_path: Path, cloop: Path) -> Path:
    """Changes two blocks and zeroes three; see `changed`."""
    image = open_local(inspect_file(cloop), None, ignore)
    path = tmp_path / "mine.delta"
    with Overlay.create(path, image_id=image.image_id, image_size=image.size) as made:
        made.write(4096, [memoryview(b"mine" * 2048)])
        made.zero(40, 3)
        made.prepare_flush()()
    image.close()
    return path


def rot(cloop: Path, block: int) -> None:
    """Damage a block. A disk that rots does not change the time of the file."""
    with open_cloop(cloop) as opened:
        offset, length = opened.index.extent(block)
    status = cloop.stat()
    with cloop.open("r+b") as file:
        file.seek(offset + length // 2)
        file.write(b"rot")
    os.utime(cloop, ns=(status.st_atime_ns, status.st_mtime_ns))


def changed() -> bytes:
    content = bytearray(padded(RAW, 65536))
    content[4096 : 3 * 4096] = b"mine" * 2048
    content[40 * 4096 : 43 * 4096] = bytes(3 * 4096)
    return bytes(content)


def test_a_raw_image(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    ran = p2pcloop("export", cloop, out)
    assert (ran.code, ran.err) == (0, "")
    assert str(out) in ran.out
    assert out.read_bytes() == padded(RAW, 65536)
    assert out.stat().st_mode & 0o111 == 0


@pytest.mark.parametrize("suffix", ["img", "qcow2"])
def test_holes_are_neither_read_nor_written(p2pcloop: Run, tmp_path: Path, suffix: str) -> None:
    """An image of 3 TiB is written in the time that its data takes, not in hours."""
    sparse, out = tmp_path / "sparse", tmp_path / f"out.{suffix}"
    with sparse.open("wb") as file:
        file.seek(2 << 40)
        file.write(b"\1far away")
        file.truncate(3 << 40)
    assert p2pcloop("export", sparse, out).code == 0
    assert out.stat().st_blocks * 512 < 8 << 20
    if suffix == "img":
        with out.open("rb") as file:
            file.seek(2 << 40)
            assert file.read(9) == b"\1far away"
        assert out.stat().st_size == 3 << 40


def test_a_qcow2(p2pcloop: Run, cloop: Path, overlay: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out.qcow2", tmp_path / "back.img"
    p2pcloop("export", cloop, out, "--overlay", overlay)
    tool("qemu-img", "check", "-q", out)
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", out, back)
    assert back.read_bytes() == changed()
    assert sorted(tmp_path.iterdir()) == sorted([cloop, overlay, out, back])


def test_zeros_become_holes(p2pcloop: Run, tmp_path: Path) -> None:
    raw = b"start".ljust(4096, b"\0") + bytes((8 << 20) - 4096)
    (tmp_path / "raw.img").write_bytes(raw)
    p2pcloop("export", tmp_path / "raw.img", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == raw
    assert (tmp_path / "out").stat().st_blocks * 512 <= 2 << 20


def test_a_cloop(p2pcloop: Run, tmp_path: Path) -> None:
    (tmp_path / "raw.img").write_bytes(RAW)
    out = tmp_path / "out.cloop"
    ran = p2pcloop("export", tmp_path / "raw.img", out, "--json")
    assert ran.json == {
        "file": str(out),
        "size": len(RAW),
        "stored": out.stat().st_size,
    }
    with open_cloop(out) as made:
        assert made.read(0, made.index.header.size) == padded(RAW, 65536)


@pytest.mark.parametrize(
    ("options", "version", "codecs"),
    [
        ([], "V2.0", {"zlib"}),
        (["--codec", "zlib"], "V2.0", {"zlib"}),
        (["--cloop-format", "4"], "V4.0", {"zlib"}),
        (["--codec", "xz"], "V4.0", {"xz", "zlib"}),
        (["--codec", "lz4"], "V4.0", {"lz4", "zlib"}),
        (["--codec", "lzo", "--cloop-format", "4"], "V4.0", {"lzo", "zlib"}),
    ],
)
def test_cloops_of_all_formats(
    p2pcloop: Run, cloop: Path, tmp_path: Path, options: list[str], version: str, codecs: set[str]
) -> None:
    out = tmp_path / "out.cloop"
    assert p2pcloop("export", cloop, out, *options).code == 0
    facts = p2pcloop("info", out, "--json").json
    assert (facts["format"], facts["header"], set(facts["codecs"])) == (
        f"cloop {version}",
        "first",
        codecs,
    )
    # What was written is read as an image again.
    assert p2pcloop("export", out, tmp_path / "back.img").code == 0
    assert (tmp_path / "back.img").read_bytes() == padded(RAW, 65536)


def test_an_option_makes_a_cloop_of_any_name(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    assert p2pcloop("export", cloop, tmp_path / "KNOPPIX", "--cloop-format", "2").code == 0
    with open_cloop(tmp_path / "KNOPPIX") as made:
        assert made.index.version == "V2.0"


def test_a_codec_that_the_format_does_not_have(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    ran = p2pcloop("export", cloop, tmp_path / "o.cloop", "--cloop-format", "2", "--codec", "xz")
    assert ran.code == 2
    assert "V2.0 has no xz" in ran.err
    assert not (tmp_path / "o.cloop").exists()


@pytest.mark.parametrize(
    ("options", "header"),
    [([], None), (["--cloop-format", "2"], "first"), (["--codec", "lz4"], "last")],
)
def test_into_a_pipe(
    p2pcloop: Run, cloop: Path, tmp_path: Path, options: list[str], header: str | None
) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    with out.open("wb") as file, subprocess.Popen(["cat", pipe], stdout=file) as reader:
        ran = p2pcloop("export", cloop, pipe, *options, "--json")
        assert reader.wait(BOUND) == 0
    assert ran.json == {"file": str(pipe), "size": len(padded(RAW, 65536)), "stored": None}
    if header is None:
        assert out.read_bytes() == padded(RAW, 65536)
        return
    with open_cloop(out) as made:
        assert made.index.header_last is (header == "last")
        assert made.read(0, made.index.header.size) == padded(RAW, 65536)


def test_to_the_standard_output(home: Path, cloop: Path) -> None:
    program = [sys.executable, "-c", "from p2pcloop.cli.main import main; main()"]
    done = subprocess.run(
        [*program, "export", cloop, "-"], capture_output=True, timeout=BOUND, check=True
    )
    assert done.stdout == padded(RAW, 65536)
    assert done.stderr.decode() == "-: a device of 3.5 MB\n"
    assert home.is_dir()


@pytest.mark.parametrize("out", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_to_the_standard_output_by_other_names(
    home: Path, cloop: Path, tmp_path: Path, out: str, options: tuple[str, ...], kind: str
) -> None:
    """The image alone goes there, also into a file that the shell has made."""
    program = [sys.executable, "-c", "from p2pcloop.cli.main import main; main()"]
    words: list[str | Path] = [*program, "export", cloop, out, *options]
    if kind == "pipe":
        done = subprocess.run(words, capture_output=True, timeout=BOUND, check=True)
        written = done.stdout
    else:
        with (tmp_path / "out").open("wb") as file:
            done = subprocess.run(
                words, stdout=file, stderr=subprocess.PIPE, timeout=BOUND, check=True
            )
        written = (tmp_path / "out").read_bytes()
    assert written == padded(RAW, 65536)
    assert b"-" in done.stderr
    assert home.is_dir()


@pytest.mark.parametrize("name", ["out.img", "out.cloop"])
def test_with_an_overlay(
    p2pcloop: Run, cloop: Path, overlay: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    ran = p2pcloop("export", cloop, out, "--overlay", overlay)
    assert (ran.code, ran.err) == (0, "")
    if name.endswith(".cloop"):
        with open_cloop(out) as made:
            assert made.read(0, made.index.header.size) == changed()
    else:
        assert out.read_bytes() == changed()


@pytest.mark.parametrize("codec", [Codec.ZLIB, Codec.LZ4])
def test_unchanged_blocks_of_a_cloop_are_taken_over(
    p2pcloop: Run, tmp_path: Path, codec: Codec
) -> None:
    """The source is compressed less than `export` does, so that its blocks are told apart."""
    source, out = tmp_path / "a.cloop", tmp_path / "out.cloop"
    with source.open("wb") as file:
        form = CloopForm(4, codec, level=1)
        write_cloop(io.BytesIO(RAW), len(RAW), file, form)
    image = open_local(inspect_file(source), None, ignore)
    changes = tmp_path / "my.delta"
    with Overlay.create(changes, image_id=image.image_id, image_size=image.size) as overlay:
        overlay.write(7 * 65536, [memoryview(b"mine" * 1024)])
        overlay.prepare_flush()()
    image.close()
    options = ["--overlay", changes, "--codec", codec.name.lower(), "--cloop-format", 4]
    assert p2pcloop("export", source, out, *options).code == 0
    expected = bytearray(padded(RAW, 65536))
    expected[7 * 65536 : 7 * 65536 + 4096] = b"mine" * 1024
    zeros = bytes(65536)
    with open_cloop(source) as before, open_cloop(out) as after:
        assert after.read(0, len(expected)) == expected
        for block in range(before.index.header.block_count):
            content = before.read_block(block)
            taken = after.read_stored(block) == before.read_stored(block)
            if block == 7 or before.index.codec(block) is not codec:
                continue
            assert taken or content == zeros
        if codec is Codec.ZLIB:
            assert after.read_stored(7) == zlib.compress(after.read_block(7), 9)


def test_a_block_that_rots_is_not_taken_over(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.cloop"
    assert p2pcloop("export", cloop, tmp_path / "first.img").code == 0  # its index is kept now
    rot(cloop, 21)
    ran = p2pcloop("export", cloop, out)
    assert ran.code == 4
    assert "does not match its hash" in ran.err
    assert not out.exists()


def test_an_overlay_of_another_image(p2pcloop: Run, overlay: Path, tmp_path: Path) -> None:
    other = write_cloop_file(tmp_path / "other.cloop", RAW[::-1])
    ran = p2pcloop("export", other, tmp_path / "out", "--overlay", overlay)
    assert ran.code == 5
    assert "hint: " in ran.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_exists_is_replaced_only_when_told(
    p2pcloop: Run, cloop: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"precious")
    ran = p2pcloop("export", cloop, out)
    assert ran.code == 2
    assert "--force" in ran.err
    assert out.read_bytes() == b"precious"
    assert p2pcloop("export", cloop, out, "--force").code == 0
    assert out.read_bytes() == padded(RAW, 65536)


def test_an_export_that_fails_leaves_what_was_there(
    p2pcloop: Run, cloop: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"precious")
    assert p2pcloop("export", cloop, tmp_path / "first.img").code == 0  # its index is kept now
    rot(cloop, 21)
    ran = p2pcloop("export", cloop, out, "--force")
    assert ran.code == 4
    assert "does not match its hash" in ran.err
    assert out.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"a.cloop", "first.img", "out.img"}


def test_a_folder_that_is_not_there(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    ran = p2pcloop("export", cloop, tmp_path / "none" / "out.img")
    assert ran.code == 11
    assert "cannot write" in ran.err
    assert f"hint: make {tmp_path / 'none'} first" in ran.err
    assert p2pcloop("export", cloop, tmp_path).code == 2


@pytest.mark.parametrize("name", ["a.cloop", "link.cloop", "mine.delta"])
def test_what_is_exported_is_not_replaced(
    p2pcloop: Run, cloop: Path, overlay: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link.cloop").hardlink_to(cloop)
    before = cloop.read_bytes(), overlay.read_bytes()
    ran = p2pcloop("export", cloop, tmp_path / name, "--overlay", overlay, "--force")
    assert (ran.code, ran.out) == (2, "")
    assert "is what is exported" in ran.err
    assert (cloop.read_bytes(), overlay.read_bytes()) == before


def test_a_symbolic_link_is_followed(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for kept in (True, False):
        target, link = tmp_path / "images" / f"real-{kept}", tmp_path / f"latest-{kept}"
        if kept:
            target.write_bytes(b"old")
        link.symlink_to(target)
        assert p2pcloop("export", cloop, link, "--force").code == 0
        assert link.is_symlink()
        assert target.read_bytes() == padded(RAW, 65536)


def test_a_link_to_nowhere_is_named(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none" / "out.img")
    ran = p2pcloop("export", cloop, tmp_path / "link")
    assert ran.code == 11
    assert str(tmp_path / "none") in ran.err


def test_links_that_lead_to_themselves_stay(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for options in ((), ("--force",)):
        ran = p2pcloop("export", cloop, tmp_path / "a", *options)
        assert ran.code == 11
        assert "symbolic links" in ran.err
    assert (tmp_path / "a").is_symlink()


def test_a_socket_is_refused(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(out))
        ran = p2pcloop("export", cloop, out, "--force")
    assert ran.code == 2
    assert "is a socket" in ran.err
    assert out.is_socket()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A block device of 4 MiB that holds no zeros."""
    backing = tmp_path / "disk.img"
    backing.write_bytes(b"\xff" * (4 << 20))
    device = tool("losetup", "-f", "--show", backing).strip()
    try:
        yield Path(device)
    finally:
        tool("losetup", "-d", device)


@needs_root
def test_a_disk_is_written_into(
    p2pcloop: Run, cloop: Path, overlay: Path, tmp_path: Path, disk: Path
) -> None:
    (tmp_path / "stick").symlink_to(disk)
    refused = p2pcloop("export", cloop, disk)
    assert refused.code == 2
    assert "--force" in refused.err
    ran = p2pcloop("export", cloop, tmp_path / "stick", "--overlay", overlay, "--force")
    assert (ran.code, ran.err) == (0, "")
    written = (tmp_path / "disk.img").read_bytes()
    assert written == changed() + b"\xff" * ((4 << 20) - len(changed()))
    assert disk.is_block_device()


@needs_root
def test_a_disk_that_is_too_small_or_in_use_is_left_alone(
    p2pcloop: Run, cloop: Path, tmp_path: Path, disk: Path
) -> None:
    (tmp_path / "raw.img").write_bytes(bytes(5 << 20))
    before = (tmp_path / "disk.img").read_bytes()
    ran = p2pcloop("export", tmp_path / "raw.img", disk, "--force")
    assert ran.code == 2
    assert "4194304 bytes" in ran.err
    assert "5242880 bytes" in ran.err
    holder = os.open(disk, os.O_RDONLY | os.O_EXCL)  # as a mount holds it
    try:
        assert p2pcloop("export", cloop, disk, "--force").code == 6
    finally:
        os.close(holder)
    assert (tmp_path / "disk.img").read_bytes() == before


@pytest.mark.parametrize("suffix", [".vmdk", ".vdi", ".VHDX", ".gz", ".img.xz", ".zip"])
def test_a_form_that_is_not_written_is_refused(
    p2pcloop: Run, cloop: Path, tmp_path: Path, suffix: str
) -> None:
    ran = p2pcloop("export", cloop, tmp_path / f"out{suffix}")
    assert ran.code == 2
    assert "no image is written as" in ran.err
    assert "hint:" in ran.err
    assert not list(tmp_path.glob("out*"))


def test_endings_in_upper_case(p2pcloop: Run, cloop: Path, tmp_path: Path) -> None:
    assert p2pcloop("export", cloop, tmp_path / "OUT.CLOOP").code == 0
    assert inspect_file(tmp_path / "OUT.CLOOP").kind == "cloop"


@pytest.mark.parametrize("out", ["", "none/", "a.cloop/"])
def test_a_place_that_is_none(p2pcloop: Run, cloop: Path, tmp_path: Path, out: str) -> None:
    given = f"{tmp_path}/{out}" if out else ""
    before = cloop.read_bytes()
    ran = p2pcloop("export", cloop, given, "--force")
    assert ran.code == 2
    assert "is empty" in ran.err if not out else "ends in `/`" in ran.err
    assert "hint:" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cloop"]
    assert cloop.read_bytes() == before


def test_a_file_where_a_folder_would_be(p2pcloop: Run, cloop: Path) -> None:
    ran = p2pcloop("export", cloop, cloop / "out.img")
    assert (ran.code, f"{cloop} is no folder" in ran.err) == (2, True)


@pytest.mark.parametrize("suffix", ["", ".cloop", ".qcow2"])
def test_a_name_as_long_as_can_be(p2pcloop: Run, cloop: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / ("é" * 124 + suffix)
    assert p2pcloop("export", cloop, out).code == 0
    assert sorted(tmp_path.iterdir()) == [cloop, out]


@needs_root
@pytest.mark.parametrize(("name", "options"), [("a.qcow2", ()), ("b", ("--codec", "lz4"))])
def test_only_a_raw_image_is_written_to_a_disk(
    p2pcloop: Run, cloop: Path, tmp_path: Path, disk: Path, name: str, options: tuple[str, ...]
) -> None:
    before = (tmp_path / "disk.img").read_bytes()
    (tmp_path / name).symlink_to(disk)
    ran = p2pcloop("export", cloop, tmp_path / name, "--force", *options)
    assert ran.code == 2
    assert "is a disk: no" in ran.err
    assert disk.is_block_device()
    assert (tmp_path / "disk.img").read_bytes() == before


def test_a_pipe_without_a_reader_is_told(cloop: Path, home: Path, tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    script = "from p2pcloop.cli.main import main; main()"
    command = [sys.executable, "-c", script, "export", str(cloop), str(pipe), "--home", str(home)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"waiting for a program that reads the pipe {pipe}\n"
        got.append(pipe.read_bytes())
        assert process.wait() == 0
    assert got == [padded(RAW, 65536)]


def test_a_reader_that_leaves_is_an_error_of_one_line(cloop: Path, home: Path) -> None:
    """What is left in the buffer of the standard output is not told once more at the end."""
    for options in ([], ["--cloop-format", "4"], ["--cloop-format", "2"]):
        command = [sys.executable, "-c", "from p2pcloop.cli.main import main; main()"]
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run(
            [*command, "export", cloop, "-", "--home", home, *options],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(write)
        assert ran.returncode == 11
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
        assert "Broken pipe" in ran.stderr


def test_nothing_is_written_into_the_store(p2pcloop: Run, cloop: Path, home: Path) -> None:
    (home / "torrents").mkdir()
    ran = p2pcloop("export", cloop, home / "torrents" / "new.img")
    assert (ran.code, list((home / "torrents").iterdir())) == (2, [])


@pytest.mark.parametrize(
    "name", ["config.toml", "keys/mine.key", "pins.msgpack", "guests/g1", "publishing"]
)
def test_nothing_is_written_where_the_home_has_files_of_its_own(
    p2pcloop: Run, cloop: Path, home: Path, name: str
) -> None:
    (home / name).parent.mkdir(exist_ok=True)
    assert p2pcloop("export", cloop, home / name).code == 2
    assert not (home / name).exists()
    assert p2pcloop("export", cloop, home / "new.img").code == 0


def test_blocks_of_a_cloop_are_as_large_as_its_image_needs(
    p2pcloop: Run, cloop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloop has 2^24 blocks at most: 1 TB of those of 64 KiB."""
    monkeypatch.setattr(cloop_writer, "MAX_BLOCK_COUNT", 16)
    out = tmp_path / "out.cloop"
    assert p2pcloop("export", cloop, out).code == 0
    with open_cloop(out) as opened:
        assert opened.index.header.block_size == 256 << 10
    assert p2pcloop("export", out, tmp_path / "raw.img").code == 0
    assert (tmp_path / "raw.img").read_bytes().rstrip(b"\0") == RAW.rstrip(b"\0")
