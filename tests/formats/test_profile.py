from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError, P2pcloopError
from p2pcloop.formats.profile import (
    LATER,
    MAX_TOUCHES,
    MAX_TOUCHES_SIZE,
    Profile,
    Touch,
    by_address,
    is_profile,
    merge_touches,
    open_profile,
    pack_profile,
    pack_touches,
    seconds_of,
    sign_profile,
    unpack_touches,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TOUCHES = [Touch(1024, 32, 0), Touch(0, 1, 3), Touch(77, 4, 3), Touch(1056, 8, 250)]
GOLDEN_TOUCHES = "28b52ffd2014a100009ccd04002000d1fbe001034c0400cd03cf08ccf7"
GOLDEN = Path(__file__).parent.parent / "data" / "profile-v1.bin"
PROFILE = Profile(bytes(32), 8 << 20, 1_700_000_000, bytes.fromhex(GOLDEN_TOUCHES))


@st.composite
def touches(draw: st.DrawFn) -> list[Touch]:
    starts = draw(
        st.lists(st.tuples(st.integers(0, 1 << 31), st.integers(1, 1 << 16)), max_size=50)
    )
    pauses = draw(st.lists(st.integers(0, 10_000), min_size=len(starts), max_size=len(starts)))
    found, after = [], 0
    for (start, count), pause in zip(starts, pauses, strict=True):
        after += pause
        found.append(Touch(start, count, after))
    return found


@given(touches())
def test_packed_and_unpacked_touches_are_the_same(found: list[Touch]) -> None:
    assert unpack_touches(pack_touches(found)) == found


def test_the_packed_form_says_what_it_always_said() -> None:
    assert unpack_touches(bytes.fromhex(GOLDEN_TOUCHES)) == TOUCHES


def test_of_too_many_touches_the_last_are_left_out() -> None:
    many = [Touch(at * 7919 % 1_000_003 * 4, 1 + at % 3, at * at) for at in range(2 * MAX_TOUCHES)]
    packed = pack_touches(many)
    kept = unpack_touches(packed)
    assert len(packed) <= MAX_TOUCHES_SIZE
    assert 0 < len(kept) <= MAX_TOUCHES
    assert kept == many[: len(kept)]


@pytest.mark.parametrize(
    "touch", [Touch(2048, 1, 0), Touch(2047, 2, 0), Touch(5, 0, 0), Touch(5, 1, -1)]
)
def test_touches_outside_the_device_or_without_blocks_are_refused(touch: Touch) -> None:
    with pytest.raises(FormatError):
        unpack_touches(pack_touches([touch]), blocks=2048)


def test_a_small_profile_that_unpacks_to_much_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(FormatError, match="larger"):
        unpack_touches(bomb[:MAX_TOUCHES_SIZE])


@given(st.binary(max_size=300))
def test_anything_else_is_an_error_of_ours(data: bytes) -> None:
    for read in (unpack_touches, open_profile):
        with pytest.raises(P2pcloopError):
            read(data)


def test_a_profile_is_read_as_it_was_written() -> None:
    assert open_profile(pack_profile(PROFILE)) == PROFILE


def test_a_signed_profile_tells_who_signed_it() -> None:
    public = KEY.public_key().public_bytes_raw()
    assert open_profile(sign_profile(PROFILE, KEY)) == replace(PROFILE, key=public)


def test_the_golden_profile_is_read_and_written() -> None:
    public = KEY.public_key().public_bytes_raw()
    assert open_profile(GOLDEN.read_bytes()) == replace(PROFILE, key=public)
    assert sign_profile(PROFILE, KEY) == GOLDEN.read_bytes()


def test_a_profile_is_told_from_other_files_by_its_start() -> None:
    for data in (pack_profile(PROFILE), GOLDEN.read_bytes()):
        assert is_profile(data)
        assert not is_profile(data[1:])
    assert not is_profile(b"")


def test_no_byte_of_a_signed_profile_can_be_changed_or_lost() -> None:
    data = sign_profile(PROFILE, KEY)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((FormatError, MismatchError)):
            open_profile(bytes(changed))
        with pytest.raises((FormatError, MismatchError)):
            open_profile(data[:at])


def test_a_profile_of_blocks_that_its_device_lacks_is_refused() -> None:
    with pytest.raises(FormatError):
        open_profile(pack_profile(replace(PROFILE, size=1 << 20)))


RUNS = st.lists(
    st.builds(
        Touch,
        st.integers(0, 40),
        st.integers(1, 12),
        st.integers(0, 1000) | st.integers(LATER, LATER + 1000),
    ),
    max_size=12,
)


def blocks_of(touches: Iterable[Touch]) -> list[int]:
    return [block for touch in touches for block in range(touch.start, touch.end)]


@given(RUNS, RUNS)
def test_merged_profiles_have_all_blocks_in_the_order_of_their_times(
    known: list[Touch], found: list[Touch]
) -> None:
    merged = merge_touches(known, found)
    assert set(blocks_of(merged)) == {*blocks_of(known), *blocks_of(found)}
    assert [touch.after for touch in merged] == sorted(touch.after for touch in merged)
    rest = list(merged)
    early = [touch for touch in known if not touch.is_later]
    for touch in early:
        rest.remove(touch)
    assert not {*blocks_of(rest)} & {*blocks_of(early)}
    for touch in rest:
        assert any(
            each.start <= touch.start and touch.end <= each.end and each.after == touch.after
            for each in (*known, *found)
        )


@given(RUNS, RUNS)
def test_what_any_of_two_needs_for_its_answer_is_needed_for_it(
    known: list[Touch], found: list[Touch]
) -> None:
    early = {*blocks_of(touch for touch in (*known, *found) if not touch.is_later)}
    merged = merge_touches(known, found)
    assert {*blocks_of(touch for touch in merged if not touch.is_later)} == early
    assert not {*blocks_of(touch for touch in merged if touch.is_later)} & early


def test_the_mark_of_later_touches_is_no_time() -> None:
    assert seconds_of([]) == 0
    assert seconds_of([Touch(0, 1, 0), Touch(1, 1, 1500)]) == 1.5
    assert seconds_of([Touch(0, 1, 0), Touch(1, 1, LATER + 2500)]) == 2.5


def test_a_profile_merged_with_itself_is_the_same() -> None:
    touches = [Touch(5, 5, 0), Touch(1 << 40, 1 << 20, 3), Touch(0, 5, 9)]
    assert merge_touches(touches, touches) == touches
    assert merge_touches([], touches) == touches


def test_what_is_waited_for_whole_is_shortest_by_address() -> None:
    found = [Touch(90, 2, 0), Touch(8, 1, 700), Touch(40, 3, 701), Touch(9, 4, 9000)]
    assert by_address(found) == [Touch(90, 2, 0), Touch(8, 5, 1), Touch(40, 3, 1)]
    assert by_address([]) == []
