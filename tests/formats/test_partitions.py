"""Partition tables: what they say, whatever is wrong with them an error of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.partitions import (
    MAX_PARTITIONS,
    Partition,
    boots_by_uefi_alone,
    read_partitions,
)
from tests.support.disks import BOOT, EFI, LINUX, ROOT, make_gpt, make_mbr

MIB = 1 << 20


def parse(disk: bytes | bytearray, size: int | None = None) -> tuple[Partition, ...]:
    whole = len(disk) if size is None else size
    return read_partitions(lambda at, length: bytes(disk[at : at + length]), whole)


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(sector: int) -> None:
    disk = make_gpt(
        {1: (ROOT, b"r" * 5 * MIB), 14: (LINUX, b"l" * MIB), 15: (EFI, b"e" * MIB)}, sector
    )
    assert parse(disk) == (
        Partition(1, MIB, 5 * MIB, "root"),
        Partition(14, 6 * MIB, MIB, ""),
        Partition(15, 7 * MIB, MIB, "EFI"),
    )


def test_the_copy_of_a_gpt_is_used_where_the_first_is_damaged() -> None:
    disk = bytearray(make_gpt({1: (ROOT, b"r" * MIB), 2: (BOOT, b"b" * MIB)}))
    disk[1100] ^= 1
    assert [part.use for part in parse(disk)] == ["root", "/boot"]
    disk[-512 + 20] ^= 1  # the copy's header
    with pytest.raises(FormatError, match=r"GPT.* damaged"):
        parse(disk)


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_copy_of_a_gpt_is_used_where_the_first_is_gone(sector: int) -> None:
    disk = bytearray(make_gpt({1: (ROOT, b"r" * MIB), 2: (BOOT, b"b" * MIB)}, sector))
    whole = parse(disk)
    disk[sector : 34 * sector] = bytes(33 * sector)
    assert parse(disk) == whole
    disk[-sector:] = bytes(sector)
    with pytest.raises(FormatError, match=r"GPT.* damaged"):
        parse(disk)
    # As Linux does, where the MBR has more than the entry that protects a GPT.
    disk[462:478] = make_mbr({1: (0x83, b"r" * MIB)})[446:462]
    assert len(parse(disk)) == 2


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_copy_of_a_gpt_is_used_on_a_disk_that_was_enlarged(sector: int) -> None:
    disk = bytearray(make_gpt({1: (ROOT, b"r" * MIB), 2: (BOOT, b"b" * MIB)}, sector))
    whole = parse(disk)
    disk += bytes(5 * MIB)
    assert parse(disk) == whole
    gone, damaged, unprotected = bytearray(disk), bytearray(disk), bytearray(disk)
    gone[sector : 34 * sector] = bytes(33 * sector)
    assert parse(gone) == whole
    damaged[sector + 20] ^= 1  # the header
    assert parse(damaged) == whole
    unprotected[510:512] = bytes(2)
    unprotected[2 * sector] ^= 1  # the entries: the header tells of the copy
    assert parse(unprotected) == whole


def test_a_disk_that_is_cut_off_is_told_with_both_numbers() -> None:
    disk = make_gpt({1: (ROOT, b"r" * MIB)})
    short = len(disk) - 512
    with pytest.raises(FormatError, match=f"{len(disk)} bytes, and {short} are here"):
        parse(disk[:short])
    mbr = make_mbr({1: (0x83, b"r" * MIB)})
    with pytest.raises(FormatError, match=f"{len(mbr)} bytes, and {len(mbr) - 1} are here"):
        parse(mbr[:-1])


def test_mbr_with_logical_partitions() -> None:
    disk = make_mbr(
        {
            1: (0xEF, b"e" * MIB),
            2: (0x83, b"l" * MIB),
            5: (0x83, b"5" * 2 * MIB),
            6: (0x82, b"6" * MIB),
        }
    )
    found = parse(disk)
    assert [(part.number, part.size, part.use) for part in found] == [
        (1, MIB, "EFI"),
        (2, MIB, ""),
        (5, 2 * MIB, ""),
        (6, MIB, "swap"),
    ]
    assert [disk[part.offset : part.offset + 1] for part in found] == [b"e", b"l", b"5", b"6"]


def test_logical_partitions_that_loop_end() -> None:
    disk = bytearray(make_mbr({5: (0x83, b"5" * MIB), 6: (0x83, b"6" * MIB)}))
    second = parse(disk)[1].offset - MIB
    disk[second + 462 : second + 478] = bytes(4) + b"\5" + bytes(3) + (1).to_bytes(4, "little") * 2
    assert 2 <= len(parse(disk)) <= MAX_PARTITIONS


GPT = make_gpt({1: (ROOT, b"r" * 4096), 2: (BOOT, b"b" * 4096)})
MBR = make_mbr({1: (0x83, b"1" * MIB), 5: (0x83, b"5" * MIB), 6: (0x83, b"6" * MIB)})


@given(st.sampled_from([GPT, MBR]), st.data())
def test_damage_anywhere_is_an_error_of_ours_or_harmless(disk: bytes, data: st.DataObject) -> None:
    damaged = bytearray(disk)
    tables = st.one_of(st.integers(440, 1300), st.integers(MIB, len(disk) - 1))
    for at in data.draw(st.lists(tables, max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    size = data.draw(st.one_of(st.just(len(disk)), st.integers(1, len(disk))))
    try:
        found = parse(damaged[:size])
    except FormatError as err:
        assert err.hint, err
        return
    assert len(found) <= MAX_PARTITIONS
    assert all(0 <= part.offset < part.end <= size for part in found)


def test_what_boots_a_disk() -> None:
    """A BIOS where there is boot code for one, since that starts sooner; else UEFI."""
    code, efi, root = b"\xeb\x63\x90", (EFI, b"e" * MIB), (ROOT, b"r" * MIB)
    for disk in (
        make_gpt({1: root, 15: efi}),
        make_gpt({1: efi}, 4096),
        make_mbr({1: (0xEF, b"e")}),
    ):
        start = disk[: 64 << 10]
        assert boots_by_uefi_alone(start)
        assert not boots_by_uefi_alone(code + start[len(code) :])
    for disk in (make_gpt({1: root}), make_mbr({1: (0x83, b"r" * MIB)}), b""):
        assert not boots_by_uefi_alone(disk[: 64 << 10])


@given(st.binary(max_size=2048))
def test_any_start_of_a_disk_has_an_answer(start: bytes) -> None:
    assert boots_by_uefi_alone(bytes(512) + b"EFI PART" + start) in (True, False)
