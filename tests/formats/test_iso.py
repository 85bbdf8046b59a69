"""CD images: what on them is the image, whatever their names are, and where it lies."""

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats import iso9660
from p2pcloop.formats.iso import Iso, is_iso, read_iso
from tests.support.cds import (
    NAMES,
    block_of,
    join_files,
    make_iso,
    make_iso_of,
    move_file,
    read_cd,
    resize_file,
)
from tools.knoppix_cd import make_cd

pytestmark = pytest.mark.interop

FIRST, SECOND = b"first" * 1000, b"second" * 700


def read_bytes(path: Path, data: bytes | bytearray) -> Iso:
    path.write_bytes(data)
    return read_cd(path)


def contents(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {
            image.name: image.extents.pread(file.fileno(), image.extents.size, 0)
            for image in read_cd(path).images
        }


def test_the_layout_of_knoppix(tmp_path: Path) -> None:
    for name, data in (("a", FIRST), ("b", SECOND)):
        (tmp_path / name).write_bytes(data)
    make_cd(tmp_path / "cd.iso", [tmp_path / "a", tmp_path / "b"])
    found = read_cd(tmp_path / "cd.iso")
    assert (found.volume, found.names, found.boots) == ("KNOPPIX", "Rock Ridge", True)
    assert contents(tmp_path / "cd.iso") == {"KNOPPIX/KNOPPIX": FIRST, "KNOPPIX/KNOPPIX2": SECOND}
    assert is_iso((tmp_path / "cd.iso").read_bytes()[:32774])
    assert not is_iso(bytes(40000))
    assert not is_iso(b"")


@pytest.mark.parametrize("names", NAMES)
def test_with_each_kind_of_names(tmp_path: Path, names: str) -> None:
    files = {"KNOPPIX/KNOPPIX": FIRST, "KNOPPIX/KNOPPIX-FAQ.txt": b"?", "index.html": b"<p>"}
    path = make_iso(tmp_path / "cd.iso", files, *NAMES[names], *("-V", "MY DISC"))
    found = read_cd(path)
    assert (found.volume, found.names, found.boots) == ("MY DISC", names, False)
    assert contents(path) == {"KNOPPIX/KNOPPIX": FIRST}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("folder", ["live", "casper"])
def test_a_live_cd_with_squashfs(tmp_path: Path, names: str, folder: str) -> None:
    files = {f"{folder}/filesystem.squashfs": FIRST, f"{folder}/vmlinuz": b"kernel"}
    path = make_iso(tmp_path / "cd.iso", files, *NAMES[names])
    assert list(contents(path).values()) == [FIRST]


@pytest.mark.parametrize("names", NAMES)
def test_a_cd_with_neither(tmp_path: Path, names: str) -> None:
    files = {"KNOPPIX": FIRST, "live/x": b"", "pool/KNOPPIX/KNOPPIX": FIRST, "knoppixx/a": b""}
    assert read_cd(make_iso(tmp_path / "cd.iso", files, *NAMES[names])).images == ()


def test_the_order_of_further_images_and_names_in_lower_case(tmp_path: Path) -> None:
    files = {f"knoppix/knoppix{n}": b"%s" % n.encode() for n in ("10", "2", "1", "x")}
    files |= {"knoppix/knoppix": b"base", "live/filesystem.squashfs": b"no"}
    found = contents(make_iso(tmp_path / "cd.iso", files, "-r"))
    assert list(found.values()) == [b"base", b"1", b"2", b"10"]


@pytest.mark.parametrize("names", NAMES)
def test_a_cd_with_udf_besides(tmp_path: Path, names: str) -> None:
    files = {"KNOPPIX/KNOPPIX": FIRST}
    path = make_iso(tmp_path / "cd.iso", files, *NAMES[names], "-udf")
    assert contents(path) == {"KNOPPIX/KNOPPIX": FIRST}


@pytest.fixture
def three(tmp_path: Path) -> bytearray:
    """Three files whose records follow each other, with ISO 9660 names alone."""
    files = {"KNOPPIX/KNOPPIX": b"a" * 4096, "KNOPPIX/KNOPPIY": b"b" * 2048, "KNOPPIX/Z": b"z" * 99}
    return bytearray(make_iso(tmp_path / "three.iso", files).read_bytes())


def test_a_file_of_two_extents_side_by_side_is_one(tmp_path: Path, three: bytearray) -> None:
    first = block_of(three, b"KNOPPIX.;1")
    move_file(three, b"KNOPPIY.;1", first + 2)
    join_files(three, b"KNOPPIX.;1", b"KNOPPIY.;1")
    [image] = read_bytes(tmp_path / "cd.iso", three).images
    assert list(image.extents) == [(first * 2048, 4096 + 2048)]


def test_a_file_of_two_extents_that_lie_apart(tmp_path: Path, three: bytearray) -> None:
    resize_file(three, b"KNOPPIX.;1", 2048)
    move_file(three, b"KNOPPIY.;1", block_of(three, b"KNOPPIX.;1") + 2)
    join_files(three, b"KNOPPIX.;1", b"KNOPPIY.;1")
    [image] = read_bytes(tmp_path / "cd.iso", three).images
    assert len(image.extents) == 2
    assert contents(tmp_path / "cd.iso") == {"KNOPPIX/KNOPPIX": b"a" * 2048 + b"b" * 2048}


def test_extents_that_overlap_are_refused(tmp_path: Path, three: bytearray) -> None:
    move_file(three, b"KNOPPIY.;1", block_of(three, b"KNOPPIX.;1") + 1)
    join_files(three, b"KNOPPIX.;1", b"KNOPPIY.;1")
    with pytest.raises(FormatError, match="KNOPPIX/KNOPPIX and KNOPPIX/KNOPPIX overlap"):
        read_bytes(tmp_path / "cd.iso", three)


def test_files_that_overlap_are_refused(tmp_path: Path) -> None:
    files = {"KNOPPIX/KNOPPIX": b"a" * 5000, "KNOPPIX/KNOPPIX2": b"b" * 5000}
    cd = bytearray(make_iso(tmp_path / "cd.iso", files).read_bytes())
    move_file(cd, b"KNOPPIX2.;1", block_of(cd, b"KNOPPIX.;1") + 2)
    with pytest.raises(FormatError, match="KNOPPIX/KNOPPIX and KNOPPIX/KNOPPIX2 overlap"):
        read_bytes(tmp_path / "cd.iso", cd)


@pytest.mark.parametrize("block", [0, 1, 10])
def test_a_file_in_the_system_area_is_refused(tmp_path: Path, three: bytearray, block: int) -> None:
    move_file(three, b"KNOPPIX.;1", block)
    with pytest.raises(FormatError, match="outside"):
        read_bytes(tmp_path / "cd.iso", three)


def test_a_file_behind_the_end_is_refused(tmp_path: Path, three: bytearray) -> None:
    move_file(three, b"KNOPPIX.;1", 1 << 20)
    with pytest.raises(FormatError, match="outside"):
        read_bytes(tmp_path / "cd.iso", three)


def test_a_cd_that_is_shorter_than_it_says_is_cut_off(tmp_path: Path) -> None:
    """A download that broke off, wherever."""
    path = make_iso(tmp_path / "cd.iso", {"KNOPPIX/KNOPPIX": b"a" * 50_000, "z": b"z" * 90_000})
    whole = path.read_bytes()
    for missing in (1, 8192, 100_000):
        short = len(whole) - missing
        with pytest.raises(
            FormatError, match=f"cut off.* {len(whole)} bytes, and {short} "
        ) as caught:
            read_bytes(path, whole[:short])
        assert caught.value.hint


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="KNOPPIX/KNOPPIX is empty"):
        read_cd(make_iso(tmp_path / "cd.iso", {"KNOPPIX/KNOPPIX": b"", "a": b"a"}))


def test_directories_that_loop_elsewhere_do_not_matter(tmp_path: Path) -> None:
    files = {"KNOPPIX/KNOPPIX": FIRST, "OUTER/INNER/X": b"x"}
    cd = bytearray(make_iso(tmp_path / "cd.iso", files).read_bytes())
    move_file(cd, b"INNER", block_of(cd, b"OUTER"))
    assert read_bytes(tmp_path / "cd.iso", cd).images
    assert read_bytes(tmp_path / "cd.iso", _without(cd, b"KNOPPIX")).images == ()


def _without(cd: bytearray, folder: bytes) -> bytes:
    """Give a folder of the root another name."""
    return bytes(cd).replace(folder, b"X" * len(folder))


def test_an_interleaved_file_is_refused(tmp_path: Path, three: bytearray) -> None:
    three[three.index(b"\x0aKNOPPIX.;1") - 32 + 26] = 1
    with pytest.raises(FormatError, match="interleaved"):
        read_bytes(tmp_path / "cd.iso", three)


@pytest.mark.parametrize("limit", ["MAX_READ", "MAX_DIRECTORY"])
def test_the_limits_of_all_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    files = {"KNOPPIX/KNOPPIX": FIRST} | {f"KNOPPIX/{n}": b"" for n in range(100)}
    path = make_iso(tmp_path / "cd.iso", files, "-r")
    assert read_cd(path).images
    monkeypatch.setattr(iso9660, limit, 4096)
    with pytest.raises(FormatError, match="longer than 4096 bytes") as caught:
        read_cd(path)
    assert caught.value.hint


@pytest.mark.parametrize("size", [0, 100, 32768, 34816, 40000])
def test_what_only_begins_like_a_cd(tmp_path: Path, size: int) -> None:
    with pytest.raises(
        FormatError, match=r"no primary volume descriptor|blocks have 0 bytes"
    ) as caught:
        read_bytes(tmp_path / "cd.iso", (bytes(32768) + b"\1CD001\1").ljust(size, b"\0"))
    assert caught.value.hint


@given(data=st.data())
def test_any_damage_is_an_error_of_ours_or_harmless(data: st.DataObject) -> None:
    """Of a CD with all kinds of names, links and continuation areas."""
    damaged = bytearray(_with_all())
    places = st.integers(32768, len(damaged) - 1)
    for at in data.draw(st.lists(places, max_size=20)):
        damaged[at] = data.draw(st.integers(0, 255))
    size = data.draw(st.one_of(st.just(len(damaged)), st.integers(32768, len(damaged))))
    with tempfile.TemporaryFile() as file:
        file.write(damaged[:size])
        file.flush()
        try:
            found = read_iso(file.fileno(), size)
        except FormatError as err:
            assert err.hint, err
            assert str(err).isprintable()
            return
    for image in found.images:
        assert image.extents.size
        assert image.extents.end <= size
    assert all(text.isprintable() for text in (found.volume, *found.unknown, *found.notes))


@functools.cache
def _with_all() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        for name in ("KNOPPIX/KNOPPIX", f"KNOPPIX/{'long' * 40}", "live/filesystem.squashfs"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(FIRST[:99])
        (tree / "KNOPPIX/KNOPPIX2").symlink_to("../live/filesystem.squashfs")
        (tree / "link").symlink_to("/".join(["far"] * 60))
        return make_iso_of(tree, Path(folder, "cd.iso"), "-R", "-J").read_bytes()
