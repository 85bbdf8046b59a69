"""The decoder of Debian's cloop kernel module judges the V4.0 files that we write.

What of `cloop.c` (package cloop-src) finds blocks in a file and decodes them is compiled for user
space, as it is installed; `cloop_module/` has what it asks of the kernel. Of Debian's programs none
knows V4.0: create_compressed_fs writes V2.0, and extract_compressed_fs takes flags for offsets.
"""

import io
import itertools
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop import open_cloop
from p2pcloop.formats.cloop_compress import CODECS
from p2pcloop.formats.cloop_writer import CloopForm, stream_cloop, write_cloop
from tests.support.cloops import V4_CONTENT, build_v4

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent / "cloop_module"
SOURCES = Path("/usr/src/cloop.tar.xz")
PARTS = (
    ("struct cloop_device\n", "static struct cloop_device **cloop_dev;\n"),
    ("static struct cloop_device **cloop_dev;\n", "static const char *cloop_name"),
    ("static void *cloop_malloc(", "static blk_status_t cloop_handle_request("),
    ("/* Read header, flags and offsets", "/* Get file from ioctl arg"),
)
"""Of cloop.c: each from its first words up to those that follow it."""

LIBRARIES = ("-lz", "-llz4", "-llzma", "-llzo2")

Module = Callable[[Path], bytes]
"""Returns the content of a cloop as the module gives it; AssertionError where it refuses."""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    folder = tmp_path_factory.mktemp("module")
    with tarfile.open(SOURCES) as package:
        for name in ("cloop.c", "cloop.h"):
            member = package.extractfile(f"modules/cloop/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    text = (folder / "cloop.c").read_text()
    pieces = [text[text.index(first) : text.index(after)] for first, after in PARTS]
    source = folder / "reader.c"
    headers = f'#include "{HERE}/kernel.h"\n#include "cloop.h"\n'
    source.write_text("\n".join([headers, *pieces, f'#include "{HERE}/main.c"\n']))
    program = folder / "reader"
    subprocess.run(
        ["gcc", "-O1", "-w", "-fms-extensions", source, "-o", program, *LIBRARIES],
        check=True,
        timeout=120,
    )

    def read(cloop: Path) -> bytes:
        done = subprocess.run([program, cloop], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return read


def make_raw() -> bytes:
    """Noise, zeros, text, and blocks that are equal."""
    noise = random.Random(4)
    text = b"".join(b"line %d of %d\n" % (n, noise.randrange(99)) for n in range(9000))
    return (noise.randbytes(70_000) + bytes(30_000) + text + text + bytes(9000))[:300_001]


@pytest.mark.parametrize("write", [write_cloop, stream_cloop])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("block_size", [512, 4096, 65536, 1 << 20])
def test_what_we_write(
    module: Module, tmp_path: Path, codec: Codec, block_size: int, write: Callable[..., object]
) -> None:
    raw, path = make_raw(), tmp_path / "ours.cloop"
    with path.open("wb") as dest:
        write(
            io.BytesIO(raw),
            len(raw),
            dest,
            CloopForm(version=4, codec=codec, block_size=block_size),
        )
    padded = raw.ljust(-(-len(raw) // block_size) * block_size, b"\0")
    assert module(path) == padded
    with open_cloop(path) as cloop:
        assert cloop.read(0, cloop.index.header.size) == padded
        used = set(cloop.index.codecs())
    # Noise is stored by zlib; of the largest blocks none is noise alone.
    assert used == ({codec, Codec.ZLIB} if block_size < 1 << 20 else {codec})


@pytest.mark.parametrize("header_last", [False, True])
@pytest.mark.parametrize("codecs", [*itertools.permutations(CODECS)])
def test_blocks_of_all_codecs_side_by_side(
    module: Module, tmp_path: Path, codecs: tuple[Codec, ...], header_last: bool
) -> None:
    """Ours and the module's reader agree on files that neither made."""
    path = tmp_path / "mixed.cloop"
    path.write_bytes(build_v4(codecs, header_last=header_last))
    right = b"".join(V4_CONTENT[codec] for codec in codecs)
    assert module(path) == right
    with open_cloop(path) as cloop:
        assert cloop.read(0, cloop.index.header.size) == right


def test_zlib_alone_is_read_by_extract_compressed_fs_too(tmp_path: Path) -> None:
    raw, path = b"text\n" * 30_000, tmp_path / "ours.cloop"
    with path.open("wb") as dest:
        header = write_cloop(io.BytesIO(raw), len(raw), dest, CloopForm(version=4, block_size=4096))
    done = subprocess.run(
        ["extract_compressed_fs", path, "-"], capture_output=True, timeout=120, check=True
    )
    assert done.stdout == raw.ljust(header.size, b"\0")


XZ_LZ4 = (Codec.XZ, Codec.LZ4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (build_v4(XZ_LZ4, header_last=True, start=b""), "invalid data block len"),
        (build_v4(XZ_LZ4, repeats=[0, 1, 0]), "out of memory for compressed buffer"),
        (build_v4(XZ_LZ4, repeats=[0, 0, 1]), "decompression error"),
        (build_v4([Codec.NONE, Codec.XZ]), "decompression error -1 .* flags 1"),
    ],
    ids=["offset 0", "back to an equal block", "equal blocks side by side", "not compressed"],
)
def test_what_the_module_does_not_read_and_we_do_not_write(
    module: Module, tmp_path: Path, data: bytes, message: str
) -> None:
    """Why a stream begins with a line of text, equal blocks are written again, and noise as zlib's
    stored blocks. We do read all of it."""
    path = tmp_path / "theirs.cloop"
    path.write_bytes(data)
    with open_cloop(path) as cloop:
        cloop.read(0, cloop.index.header.size)
    with pytest.raises(AssertionError, match=message):
        module(path)
