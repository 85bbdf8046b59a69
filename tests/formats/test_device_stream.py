"""Device states without the pages of their firmware."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats import device_stream
from p2pcloop.formats.device_stream import leaves_out, with_firmware, without_firmware

PAGE = 4096
FIRMWARE = bytes(PAGE) + random.Random(1).randbytes(3 * PAGE) + b"\xff" * PAGE
PAGES = [FIRMWARE[at : at + PAGE] for at in range(0, len(FIRMWARE), PAGE)]
STREAM = b"QEVM" + b"".join(bytes([n]) * 8 + page for n, page in enumerate(PAGES)) + b"devices"
STORED = without_firmware(STREAM, FIRMWARE)


def test_what_the_firmware_has_is_left_out() -> None:
    assert leaves_out(STORED)
    assert not leaves_out(STREAM)
    assert len(STORED) == len(STREAM) - 3 * PAGE + 44 + 3 * 12
    assert with_firmware(STORED, FIRMWARE) == STREAM


@given(st.lists(st.one_of(st.sampled_from(PAGES), st.binary(max_size=9)), max_size=12))
def test_any_stream_comes_back(parts: list[bytes]) -> None:
    stream = b"QEVM" + b"".join(parts)
    stored = without_firmware(stream, FIRMWARE)
    assert (with_firmware(stored, FIRMWARE) if leaves_out(stored) else stored) == stream


def test_a_stream_of_another_firmware_stays_as_it_is() -> None:
    assert without_firmware(STREAM, b"") == STREAM
    assert without_firmware(STREAM, random.Random(2).randbytes(3 * PAGE)) == STREAM


def test_another_firmware_is_refused() -> None:
    with pytest.raises(MismatchError, match="is not that of the state"):
        with_firmware(STORED, FIRMWARE[::-1])
    for shorter in (b"", FIRMWARE[:PAGE]):
        with pytest.raises(MismatchError, match="is not that of the state"):
            with_firmware(STORED, shorter)


@pytest.mark.parametrize("length", [8, 43, 44, 79, 80, len(STORED) - 1])
def test_a_device_state_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises((FormatError, MismatchError)):
        with_firmware(STORED[:length], FIRMWARE)


@pytest.mark.parametrize(
    ("at", "value"),
    [(40, 0), (40, 1 << 31), (44, 0xFFFFFFFF), (48, 0xFFFFFFFF), (52, 0xFFFFFFFF), (56, 0)],
)
def test_pieces_that_cannot_be_are_refused(at: int, value: int) -> None:
    wrong = STORED[:at] + struct.pack("<I", value) + STORED[at + 4 :]
    with pytest.raises((FormatError, MismatchError)):
        with_firmware(wrong, FIRMWARE)


def test_a_stream_is_not_longer_than_a_device_state_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_stream, "MAX_DEVICE_STATE", len(STREAM) - 1)
    with pytest.raises(FormatError, match="too long"):
        with_firmware(STORED, FIRMWARE)


@given(st.integers(0, len(STORED) - 1), st.integers(1, 255))
def test_every_flipped_byte_is_noticed(at: int, flip: int) -> None:
    wrong = bytearray(STORED)
    wrong[at] ^= flip
    if leaves_out(bytes(wrong)):
        with pytest.raises((FormatError, MismatchError)):
            with_firmware(bytes(wrong), FIRMWARE)
