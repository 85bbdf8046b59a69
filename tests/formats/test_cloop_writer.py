"""What write_cloop writes, and what it leaves behind when it cannot."""

import errno
import io
import lzma
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, StorageError, UsageError
from p2pcloop.formats.chunk_table import Codec
from p2pcloop.formats.cloop_compress import _ENCODERS, CODECS, can_stay
from p2pcloop.formats.cloop_index import MAX_BLOCK_COUNT, is_cloop, read_cloop_header
from p2pcloop.formats.cloop_writer import CloopForm, StoredBlock, stream_cloop, write_cloop
from p2pcloop.formats.codec import decode


class Pipe(io.BytesIO):
    """What can only be written from start to end."""

    def seekable(self) -> bool:
        return False

    def seek(self, _offset: int, _whence: int = 0, /) -> int:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    def truncate(self, _size: int | None = None, /) -> int:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))


def content(file: bytes) -> bytes:
    """Read a whole cloop back."""
    index = read_cloop_header(lambda at, size: file[at : at + size], len(file))
    blocks = []
    for number in range(index.header.block_count):
        offset, length = index.extent(number)
        stored = file[offset : offset + length]
        blocks.append(decode(index.codec(number), stored, index.header.block_size))
    return b"".join(blocks)


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Zeros and noise in runs, of any length."""
    runs = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), min_size=1, max_size=6))
    noise = random.Random(draw(st.integers(0, 1 << 16)))
    return b"".join(noise.randbytes(size) if noisy else bytes(size) for noisy, size in runs)


@settings(deadline=None, max_examples=150)
@given(images(), st.sampled_from([512, 1536, 4096, 65536]), st.integers(0, 9), st.integers(1, 4))
def test_round_trip(image: bytes, block_size: int, level: int, workers: int) -> None:
    dest = io.BytesIO()
    header = write_cloop(
        io.BytesIO(image),
        len(image),
        dest,
        CloopForm(block_size=block_size, level=level),
        workers=workers,
    )
    padded = -(-len(image) // block_size) * block_size
    assert (header.block_size, header.size) == (block_size, padded)
    assert content(dest.getvalue()) == image.ljust(padded, b"\0")


KINDS = [(2, Codec.ZLIB), *((4, codec) for codec in CODECS)]


@settings(deadline=None, max_examples=80)
@given(images(), st.sampled_from([512, 1536, 4096, 65536]), st.sampled_from(KINDS), st.booleans())
def test_round_trip_of_all_versions_and_codecs(
    image: bytes, block_size: int, kind: tuple[int, Codec], streamed: bool
) -> None:
    version, codec = kind
    dest = Pipe() if streamed else io.BytesIO()
    write = stream_cloop if streamed else write_cloop
    header = write(
        io.BytesIO(image),
        len(image),
        dest,
        CloopForm(version=version, codec=codec, block_size=block_size),
    )
    file = dest.getvalue()
    assert content(file) == image.ljust(header.size, b"\0")
    index = read_cloop_header(lambda at, size: file[at : at + size], len(file))
    assert (index.version, index.header) == (f"V{version}.0", header)
    assert index.header_last is (streamed and version == 4)


def test_a_stream_of_v2_is_what_a_file_is() -> None:
    image, pipe, file = random.Random(2).randbytes(9000), Pipe(), io.BytesIO()
    stream_cloop(io.BytesIO(image), len(image), pipe, CloopForm(block_size=512))
    write_cloop(io.BytesIO(image), len(image), file, CloopForm(block_size=512))
    assert pipe.getvalue() == file.getvalue()


@pytest.mark.parametrize("codec", CODECS)
def test_what_does_not_shrink_is_stored_by_zlib(codec: Codec) -> None:
    image = random.Random(2).randbytes(65536) + bytes(65536)
    dest = io.BytesIO()
    write_cloop(io.BytesIO(image), len(image), dest, CloopForm(version=4, codec=codec))
    file = dest.getvalue()
    index = read_cloop_header(lambda at, size: file[at : at + size], len(file))
    assert [index.codec(0), index.codec(1)] == [Codec.ZLIB, codec]
    assert index.extent(0)[1] == 65536 + 16


@pytest.mark.parametrize("write", [write_cloop, stream_cloop])
@pytest.mark.parametrize(
    ("version", "codec", "message"),
    [
        (3, Codec.ZLIB, "V3.0 is not written"),
        (2, Codec.XZ, "V2.0 has no xz"),
        (4, Codec.ZSTD, "V4.0 has no zstd"),
        (4, Codec.NONE, "V4.0 has no none"),
    ],
)
def test_versions_and_codecs_that_there_are_not(
    write: Callable[..., object], version: int, codec: Codec, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(io.BytesIO(bytes(512)), 512, io.BytesIO(), CloopForm(version=version, codec=codec))


def test_a_stream_that_breaks_off_is_no_cloop() -> None:
    pipe = Pipe()
    with pytest.raises(FormatError, match="ends after 700 of 1024 bytes"):
        stream_cloop(io.BytesIO(bytes(700)), 1024, pipe, CloopForm(version=4, block_size=512))
    assert not is_cloop(pipe.getvalue()[:128], pipe.getvalue()[-136:])
    pipe = Pipe()
    with pytest.raises(FormatError):
        stream_cloop(io.BytesIO(bytes(700)), 1024, pipe, CloopForm(version=2, block_size=512))
    assert pipe.getvalue() == b""


def test_a_reader_that_went_away_is_told() -> None:
    class Gone(Pipe):
        def write(self, _data: object, /) -> int:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))

    for version in (2, 4):
        with pytest.raises(StorageError, match="cannot write the cloop: Broken pipe"):
            stream_cloop(io.BytesIO(bytes(512)), 512, Gone(), CloopForm(version=version))


def test_workers_and_their_order_change_nothing() -> None:
    noise = random.Random(5)
    image = b"".join(bytes([noise.randrange(9)]) * noise.randrange(1, 900) for _ in range(1000))
    files = []
    for workers in (1, 2, 5):
        dest = io.BytesIO()
        write_cloop(
            io.BytesIO(image), len(image), dest, CloopForm(block_size=1024), workers=workers
        )
        files.append(dest.getvalue())
    assert files[0] == files[1] == files[2]


def test_only_size_bytes_are_taken_from_where_the_source_stands() -> None:
    source = io.BytesIO(b"before" + b"x" * 600 + b"after")
    source.seek(6)
    dest = io.BytesIO()
    write_cloop(source, 600, dest, CloopForm(block_size=512))
    assert content(dest.getvalue()) == (b"x" * 600).ljust(1024, b"\0")
    assert source.read() == b"after"


def test_a_source_that_gives_little_at_a_time() -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100))

    dest = io.BytesIO()
    write_cloop(Trickle(b"y" * 5000), 5000, dest, CloopForm(block_size=4096))
    assert content(dest.getvalue()) == (b"y" * 5000).ljust(8192, b"\0")


def test_progress_counts_bytes_of_the_image() -> None:
    done: list[int] = []
    write_cloop(
        io.BytesIO(bytes(1300)), 1300, io.BytesIO(), CloopForm(block_size=512), progress=done.append
    )
    assert done == [512, 1024, 1300]


def test_what_was_in_the_file_before_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "image.cloop"
    path.write_bytes(b"old" * 10000)
    with path.open("r+b") as dest:
        write_cloop(io.BytesIO(b"z" * 512), 512, dest, CloopForm(block_size=512))
    assert content(path.read_bytes()) == b"z" * 512


def test_memory_is_bounded_by_the_workers() -> None:
    """The source never runs further ahead of what was written than the blocks in flight."""
    written = 0
    ahead = 0
    size = 1 << 20

    class Source(io.BytesIO):
        def read(self, length: int | None = -1, /) -> bytes:
            nonlocal ahead
            ahead = max(ahead, self.tell() // size - written)
            return super().read(length)

    def count(done: int) -> None:
        nonlocal written
        written = done // size

    image = bytes(size * 24)
    dest = io.BytesIO()
    write_cloop(
        Source(image), len(image), dest, CloopForm(block_size=size), workers=2, progress=count
    )
    assert 0 < ahead <= 8


@pytest.mark.parametrize("size", [0, -512])
def test_an_empty_image(size: int) -> None:
    with pytest.raises(FormatError, match="empty"):
        write_cloop(io.BytesIO(), size, io.BytesIO())


def test_an_image_shorter_than_said_leaves_no_cloop() -> None:
    dest = io.BytesIO()
    with pytest.raises(FormatError, match="ends after 700 of 1024 bytes"):
        write_cloop(io.BytesIO(bytes(700)), 1024, dest, CloopForm(block_size=512))
    assert not is_cloop(dest.getvalue()[:128])


@pytest.mark.parametrize("block_size", [0, -512, 511, 1000, (1 << 20) + 512])
def test_block_sizes_that_the_format_does_not_have(block_size: int) -> None:
    with pytest.raises(UsageError, match="block size"):
        write_cloop(io.BytesIO(bytes(512)), 512, io.BytesIO(), CloopForm(block_size=block_size))


@pytest.mark.parametrize("level", [-1, 10])
def test_levels_that_zlib_does_not_have(level: int) -> None:
    with pytest.raises(UsageError, match="level"):
        write_cloop(io.BytesIO(bytes(512)), 512, io.BytesIO(), CloopForm(level=level))


def test_too_many_blocks() -> None:
    with pytest.raises(FormatError, match=r"over the limit of 8\.6 GB") as caught:
        write_cloop(
            io.BytesIO(), MAX_BLOCK_COUNT * 512 + 1, io.BytesIO(), CloopForm(block_size=512)
        )
    assert caught.value.hint == "take a larger block size, up to 1 MiB"


def test_a_full_disk_is_told_and_leaves_no_cloop() -> None:
    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            if self.tell() > 2000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            assert isinstance(data, bytes)
            return super().write(data)

    dest = Full()
    image = random.Random(1).randbytes(8192)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_cloop(io.BytesIO(image), len(image), dest, CloopForm(block_size=512))
    assert caught.value.errno == errno.ENOSPC
    assert not is_cloop(dest.getvalue()[:128])


def test_a_source_that_cannot_be_read() -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(StorageError, match="cannot read the image: Input/output error"):
        write_cloop(Broken(), 512, io.BytesIO())


def test_blocks_of_zeros_cost_what_zlib_says() -> None:
    dest = io.BytesIO()
    write_cloop(io.BytesIO(bytes(65536 * 20)), 65536 * 20, dest)
    assert len(dest.getvalue()) == 136 + 8 * 21 + 20 * len(zlib.compress(bytes(65536), 9))


@settings(deadline=None, max_examples=80)
@given(
    images(),
    st.sampled_from(KINDS),
    st.lists(st.sampled_from(["stored", "wrong", "none"]), min_size=1, max_size=9),
    st.booleans(),
)
def test_blocks_that_are_found_stored_are_taken_over(
    image: bytes, kind: tuple[int, Codec], answers: list[str], streamed: bool
) -> None:
    """Wrong ones are read and compressed instead; the last block may be cut short."""
    form = CloopForm(*kind, block_size=1024)
    asked: list[int] = []

    def find(offset: int, wanted: CloopForm) -> StoredBlock | None:
        assert wanted is form
        asked.append(offset)
        block = image[offset : offset + 1024]
        answer = answers[offset // 1024 % len(answers)]
        if answer == "none":
            return None
        # By another level of zlib: such bytes are told from those that are compressed anew.
        stored = zlib.compress(block, 1) if form.codec is Codec.ZLIB else encoded(form, block)
        return lambda: stored if answer == "stored" else None

    dest = Pipe() if streamed else io.BytesIO()
    write = stream_cloop if streamed else write_cloop
    header = write(io.BytesIO(image), len(image), dest, form, find=find)
    file = dest.getvalue()
    assert content(file) == image.ljust(header.size, b"\0")
    assert asked == list(range(0, len(image) - 1023, 1024))
    index = read_cloop_header(lambda at, size: file[at : at + size], len(file))
    if form.codec is Codec.ZLIB:
        for offset in asked:
            at, length = index.extent(offset // 1024)
            block = image[offset : offset + 1024]
            level = 1 if answers[offset // 1024 % len(answers)] == "stored" else 9
            anew = form.compressor()(block)[1] if level == 9 else zlib.compress(block, 1)
            assert file[at : at + length] == anew


def encoded(form: CloopForm, block: bytes) -> bytes:
    """A block in the codec of a form, even if it grows by that."""
    return _ENCODERS[form.codec](block)


@pytest.mark.parametrize(
    ("codec", "stored", "stays"),
    [
        (Codec.ZLIB, bytes(512 + 16), True),
        (Codec.ZLIB, bytes(512 + 17), False),
        (Codec.XZ, lzma.compress(bytes(512), check=lzma.CHECK_CRC32), True),
        (Codec.XZ, lzma.compress(bytes(512), check=lzma.CHECK_CRC64), False),
        (Codec.XZ, lzma.compress(bytes(512), check=lzma.CHECK_NONE), False),
        (Codec.LZ4, bytes(100), True),
    ],
)
def test_what_readers_of_the_format_refuse_is_not_taken_over(
    codec: Codec, stored: bytes, stays: bool
) -> None:
    assert can_stay(codec, stored, 512) is stays
