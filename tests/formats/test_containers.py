"""Files that hold an image in another form, or none: told by their bytes, and never trusted."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.containers import (
    CONTAINERS,
    DISK_FORMATS,
    TAIL_SIZE,
    check_alone,
    describe_other,
    detect_container,
)
from tests.support.programs import tool


def kind_of(data: bytes) -> str:
    return detect_container(data[: 68 << 10], data[-TAIL_SIZE:])


def check(kind: str, data: bytes, name: str = "given") -> None:
    check_alone(kind, lambda at, length: data[at : at + length], len(data), name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Disk images of each kind, as qemu-img makes them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "raw").write_bytes(b"data" * 50_000 + bytes(1 << 20))
    found = {}
    for kind, driver in DISK_FORMATS.items():
        tool("qemu-img", "convert", "-O", driver, folder / "raw", folder / kind)
        found[kind] = (folder / kind).read_bytes()
    fixed = ("-o", "subformat=fixed")
    tool("qemu-img", "convert", "-O", "vpc", *fixed, folder / "raw", folder / "fixed")
    found["fixed"] = (folder / "fixed").read_bytes()
    stream = ("-o", "subformat=streamOptimized")
    tool("qemu-img", "convert", "-O", "vmdk", *stream, folder / "raw", folder / "stream")
    found["stream"] = (folder / "stream").read_bytes()
    return found


@pytest.mark.interop
def test_disk_images_of_each_kind(made: dict[str, bytes]) -> None:
    for name, data in made.items():
        kind = {"fixed": "vhd", "stream": "vmdk"}.get(name, name)
        assert kind_of(data) == kind
        check(kind, data)


@pytest.mark.interop
@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhd"])
def test_what_takes_content_from_others_is_refused(tmp_path: Path, kind: str) -> None:
    base, child = tmp_path / "base", tmp_path / "child"
    tool("qemu-img", "create", "-f", DISK_FORMATS[kind], base, "1M")
    if kind == "vhd":
        data = bytearray(base.read_bytes())
        data[-512 + 60 : -512 + 64] = struct.pack(">I", 4)  # a differencing disk
        child.write_bytes(data)
    else:
        driver = DISK_FORMATS[kind]
        tool("qemu-img", "create", "-f", driver, "-b", base, "-F", driver, child)
    with pytest.raises(UsageError, match="given takes a part of its content from") as caught:
        check(kind, child.read_bytes())
    assert caught.value.hint


@pytest.mark.interop
def test_external_data_is_refused(tmp_path: Path, made: dict[str, bytes]) -> None:
    out = tmp_path / "a.qcow2"
    data = f"data_file={tmp_path}/data,data_file_raw=on"
    tool("qemu-img", "create", "-f", "qcow2", "-o", data, out, "1M")
    with pytest.raises(UsageError, match="from another file"):
        check("qcow2", out.read_bytes())
    flat = ("-o", "subformat=monolithicFlat")
    tool("qemu-img", "create", "-f", "vmdk", *flat, tmp_path / "flat.vmdk", "1M")
    descriptor = (tmp_path / "flat.vmdk").read_bytes()
    assert kind_of(descriptor) == ""
    assert "VMware descriptor" in describe_other(descriptor, descriptor)[0]
    # A header that says nothing of its own: QEMU would read the descriptor, and open what it names.
    hidden = bytearray(made["vmdk"])
    hidden[12:20] = bytes(8)
    with pytest.raises(UsageError, match="from another file"):
        check("vmdk", bytes(hidden))
    linked = bytearray(made["vdi"])
    linked[440] = 1
    with pytest.raises(UsageError, match="from another file"):
        check("vdi", bytes(linked))


@pytest.mark.interop
def test_an_encrypted_qcow2_is_named(made: dict[str, bytes]) -> None:
    locked = bytearray(made["qcow2"])
    locked[32:36] = struct.pack(">I", 2)
    with pytest.raises(UsageError, match="given is encrypted") as caught:
        check("qcow2", bytes(locked))
    assert caught.value.hint


@pytest.mark.interop
@pytest.mark.parametrize("kind", ["vdi", "vhd", "fixed"])
def test_cut_off(made: dict[str, bytes], kind: str) -> None:
    short = made[kind][:-4096]
    with pytest.raises(FormatError, match="given is cut off"):
        check("vhd" if kind == "fixed" else kind, short)


@pytest.mark.interop
@pytest.mark.parametrize("lost", [1, 100, 504])
def test_a_footer_that_is_cut_off(made: dict[str, bytes], lost: int) -> None:
    short = made["fixed"][:-lost]
    assert detect_container(short[:1024], short[-512:]) == "vhd"
    with pytest.raises(FormatError, match="given is cut off"):
        check("vhd", short)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (bytes(257) + b"ustar\0" + bytes(300), "a tar archive"),
        (b"PK\3\4" + bytes(300), "a zip archive"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "text"),
        ("Größe äöü\n".encode() * 300, "text"),
        (b"\x7fELF\2\1\1", "a program (ELF)"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        (b"\x3a\xff\x26\xed\1\0", "an Android sparse image"),
        (b"\x02\x21\x4c\x18" + bytes(300), "compressed by lz4"),
        (b"\xc7\x71" + bytes(300), "a cpio archive"),
        (b"\0" + b"\xff" * 10 + b"\0\0\2\0\1" + bytes(2336), "a CD in raw sectors of 2352 bytes"),
        (bytes(514) + b"HdrS" + bytes(300), "a Linux kernel"),
        (
            b"ER".ljust(512, b"\0") + b"PM\0\0" + bytes(600),
            "a disk with a partition table of Apple",
        ),
        (bytes(508) + b"\xda\xbe" + bytes(600), "a disk with a partition table of Sun"),
        (b"encrcdsa" + bytes(900), "an encrypted disk image of macOS (dmg)"),
        (bytes(9000) + b"koly".ljust(512, b"\0"), "a disk image of macOS (dmg)"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, what: str) -> None:
    assert kind_of(data) == ""
    said, hint = describe_other(data, data[-TAIL_SIZE:])
    assert said == what
    assert hint


@pytest.mark.parametrize(
    "data", [bytes(5000), bytes(range(256)) * 30, b"\1\2\3", b"text" + bytes(9)]
)
def test_what_may_be_an_image_is_not(data: bytes) -> None:
    assert describe_other(data, data[-TAIL_SIZE:]) == ("", "")


STARTS = [b"QFI\xfb\0\0\0\3", b"KDMV\1\0\0\0", b"conectix", b"vhdxfile", b"\x7f\x10\xda\xbe", b""]


@given(st.sampled_from(STARTS), st.binary(max_size=1500))
def test_any_bytes(start: bytes, data: bytes) -> None:
    head = start + data
    assert kind_of(head) in ("", *CONTAINERS)
    describe_other(head, head[-TAIL_SIZE:])
    for kind in DISK_FORMATS:
        try:
            check(kind, head)
        except (FormatError, UsageError) as err:
            assert err.hint, err
