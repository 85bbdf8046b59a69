"""cloop-utils and qemu against our reader and writer."""

import random
import subprocess
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.cloop_index import CloopHeader
from p2pcloop.formats.cloop_writer import CloopForm, write_cloop

pytestmark = pytest.mark.interop

SIZE = 100_000
"""Not a multiple of any block size; extract_compressed_fs dies (SIGFPE) of fewer than 10 blocks."""


def run(*command: str | Path, stdin: bytes | None = None, status: int = 0) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr.decode()
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Noise, zeros and text, as a file system has them."""
    noise = random.Random(11)
    text = b"".join(f"line {n} of {noise.randrange(99)}\n".encode() for n in range(2000))
    path = tmp_path / "raw.img"
    path.write_bytes((noise.randbytes(9000) + bytes(30_000) + text + bytes(SIZE))[:SIZE])
    return path


def assert_reads_as(path: Path, image: bytes, block_size: int) -> None:
    blocks = -(-len(image) // block_size)
    with open_cloop(path) as cloop:
        assert cloop.index.header == CloopHeader(block_size, blocks)
        assert cloop.read(0, cloop.index.header.size) == image.ljust(blocks * block_size, b"\0")


@pytest.mark.parametrize(
    ("options", "block_size"),
    [
        ("", 65536),
        ("-B 512", 512),
        ("-B 1536", 1536),
        ("-B 2560", 2560),
        ("-B 4K", 4096),
        ("-B 66048", 66048),
        ("-B 256K", 256 * 1024),
        ("-B 1M", 1 << 20),
        ("-B 100", 512),  # rounded up to the least
        ("-B 5000", 4608),  # rounded down to a multiple of 512
        ("-B 2M", 1 << 20),  # cut to the most
        ("-B 4096 -L 0", 4096),
        ("-B 4096 -L 1", 4096),
        ("-B 4096 -L 6", 4096),
        ("-B 4096 -L 9 -t 2", 4096),
        ("-B 4096 -L -1", 4096),  # 7-Zip's deflate
        ("-B 4096 -L -2", 4096),  # the best of all for each block
        ("-B 4096 -b", 4096),
        ("-B 4096 -m", 4096),
        ("-B 4096 -r", 4096),
        ("-B 4096 -f temporary", 4096),
        ("-B 4096 -v -t 1", 4096),
    ],
)
def test_options_of_create_compressed_fs(
    image: Path, options: str, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    run("create_compressed_fs", "-q", *options.split(), image, "theirs.cloop")
    assert_reads_as(Path("theirs.cloop"), image.read_bytes(), block_size)


@pytest.mark.parametrize(
    "command",
    [
        "create_compressed_fs -q -B 4096 -m - -",
        "create_compressed_fs -q -B 4096 -f temporary - -",
        "create_compressed_fs -q -B 4096 -s 100000 - out && cat out",
        "create_compressed_fs -q -B 4096 -s 100k -r - out && cat out",
        "create_compressed_fs -q -B 4096 -s 100000 -S head - - > tail && cat head tail",
        "create_compressed_fs -q -B 4096 -S head raw.img tail && cat head tail",
        "create_compressed_fs - 4096",  # the syntax of before 2005
    ],
)
def test_standard_input_and_output_of_create_compressed_fs(image: Path, command: str) -> None:
    raw = image.read_bytes()
    theirs = image.with_name("theirs.cloop")
    theirs.write_bytes(run("sh", "-c", f"cd {image.parent} && {command}", stdin=raw))
    assert_reads_as(theirs, raw, 4096)


def test_an_image_cut_by_its_announced_size(image: Path) -> None:
    """Given less than there is, create_compressed_fs warns, keeps the start, and fails."""
    theirs = image.with_name("theirs.cloop")
    run("create_compressed_fs", "-q", "-B", "4096", "-s", "50000", image, theirs, status=1)
    assert_reads_as(theirs, image.read_bytes()[: 13 * 4096], 4096)


def test_files_of_create_compressed_fs_that_are_refused(image: Path) -> None:
    theirs = image.with_name("theirs.cloop")
    # Announced larger than it is: it gives up before the header is written.
    run("create_compressed_fs", "-q", "-B", "4096", "-s", "200000", image, theirs, status=1)
    with pytest.raises(FormatError, match="not a cloop"):
        open_cloop(theirs)
    theirs.write_bytes(run("create_compressed_fs", "-q", "-m", "-", "-", stdin=b""))
    with pytest.raises(FormatError, match="holds no blocks"):
        open_cloop(theirs)
    # The old syntax alone does not check the block size.
    theirs.write_bytes(run("create_compressed_fs", "-", "1000", stdin=image.read_bytes()))
    with pytest.raises(FormatError, match="block size is 1000"):
        open_cloop(theirs)


@pytest.mark.parametrize("block_size", [512, 1536, 4096, 8192])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_our_files_in_their_tools(image: Path, block_size: int, level: int) -> None:
    ours = image.with_name("ours.cloop")
    with image.open("rb") as source, ours.open("wb") as dest:
        header = write_cloop(source, SIZE, dest, CloopForm(block_size=block_size, level=level))
    theirs = image.with_name("theirs.cloop")
    run("create_compressed_fs", "-q", "-B", str(block_size), "-L", str(level), image, theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    padded = image.read_bytes().ljust(header.size, b"\0")
    assert run("extract_compressed_fs", ours, "-") == padded
    run("qemu-img", "compare", "-f", "cloop", "-F", "raw", ours, image)
    # The size, too, and with the format guessed from the preamble.
    run("qemu-img", "convert", "-O", "raw", ours, image)
    assert image.read_bytes() == padded


@pytest.mark.parametrize("block_size", [65536, 1 << 20])
def test_our_large_blocks_in_qemu(image: Path, block_size: int) -> None:
    ours = image.with_name("ours.cloop")
    with image.open("rb") as source, ours.open("wb") as dest:
        write_cloop(source, SIZE, dest, CloopForm(block_size=block_size))
    run("qemu-img", "compare", "-f", "cloop", "-F", "raw", ours, image)


def test_qemu_reads_the_same_from_a_file_padded_as_on_freebsd(image: Path) -> None:
    ours = image.with_name("ours.cloop")
    with image.open("rb") as source, ours.open("wb") as dest:
        write_cloop(source, SIZE, dest, CloopForm(block_size=4096))
    with ours.open("ab") as dest:
        padding = -ours.stat().st_size % 512
        assert padding > 0
        dest.write(bytes(padding))
    assert_reads_as(ours, image.read_bytes(), 4096)
    run("qemu-img", "compare", "-f", "cloop", "-F", "raw", ours, image)
