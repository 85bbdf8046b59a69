"""Profiles: the blocks of a boot in order of first touch (docs/formats/profile.md).

A profile names blocks of the device, not chunks. So it can be used with later versions of its
image, and with the same content packed otherwise. It is part of a manifest, a file that its maker
signed, or a file in the home of the node that recorded it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgpack
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError
from p2pcloop.formats.name import KEY_SIZE, Name
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.formats.signed import MAX_TIME, check_format, sign, unpack_signed, verify
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

FORMAT = 1
SIGNATURE_DOMAIN = b"p2pcloop profile 1\0"
MAX_TOUCHES = 8192
MAX_TOUCHES_SIZE = 24 << 10
"""Bytes of packed touches; longer ones are cut. They are part of the manifest, which is fetched
before the first block. The boot of a small Debian has 600 touches in 2 KB."""

MAX_PROFILE_SIZE = MAX_TOUCHES_SIZE + 512
"""Bytes of a profile as a file."""

LATER = 1_000_000
"""Milliseconds. Touches of a resumed guest after its first answer have this added to their time.
No recording lasts so long."""

_MAX_UNPACKED = 15 * MAX_TOUCHES + 8
_MAX_AFTER = 0xFFFF_FFFF
_IMAGE_ID_SIZE = 32


@dataclass(frozen=True, slots=True)
class Touch:
    """A run of blocks that were read for the first time.

    Attributes:
        start: the first block.
        count: how many.
        after: milliseconds since the first touch of the boot; with `LATER`, where that is added.
    """

    start: int
    count: int
    after: int

    @property
    def end(self) -> int:
        """The block after the last."""
        return self.start + self.count

    @property
    def is_later(self) -> bool:
        """Whether it came after the first answer of a resumed guest."""
        return self.after >= LATER


@dataclass(frozen=True, slots=True)
class Profile:
    """The first reads of a boot.

    Attributes:
        image_id: of the image that was booted.
        size: bytes of its device.
        created: seconds since 1970, UTC.
        touches: packed (`unpack_touches`).
        key: of its signer, or None if it is not signed.
    """

    image_id: bytes
    size: int
    created: int
    touches: bytes
    key: bytes | None = None


def pack_touches(touches: Sequence[Touch]) -> bytes:
    """Pack touches, in their order; if there are too many, leave out the last ones."""
    touches = touches[:MAX_TOUCHES]
    while len(packed := _pack(touches)) > MAX_TOUCHES_SIZE:
        touches = touches[: len(touches) * 7 // 8]
    return packed


def unpack_touches(data: bytes, *, blocks: int = MAX_IMAGE_SIZE // BLOCK_SIZE) -> list[Touch]:
    """Read packed touches and check each.

    Args:
        blocks: of the device.

    Raises:
        FormatError: damaged, over a limit, or blocks that are not of the device.
    """
    if len(data) > MAX_TOUCHES_SIZE:
        raise FormatError(
            tr(
                "a profile of {data_count} bytes is over {max_touches_size}",
                data_count=len(data),
                max_touches_size=MAX_TOUCHES_SIZE,
            )
        )
    try:
        frame = zstandard.get_frame_parameters(data)
        if not 0 < frame.content_size <= _MAX_UNPACKED:
            raise FormatError("a profile is larger than one may be, or does not say how large")
        plain = zstandard.ZstdDecompressor().decompress(data, read_across_frames=False)
        numbers = msgpack.unpackb(plain, max_array_len=3 * MAX_TOUCHES)
    except (zstandard.ZstdError, ValueError, msgpack.UnpackException) as err:
        raise FormatError(tr("a profile is damaged: {err}", err=err)) from err
    if not isinstance(numbers, list) or len(numbers) % 3 or not _are_integers(numbers):
        raise FormatError("a profile is not a list of touches")
    return list(_touches(numbers, blocks))


def fit_touches(data: bytes, blocks: int) -> bytes:
    """Packed touches without those of blocks behind the end of a device."""
    touches = unpack_touches(data)
    fitting = [touch for touch in touches if touch.start + touch.count <= blocks]
    return data if len(fitting) == len(touches) else pack_touches(fitting)


def merge_touches(known: Sequence[Touch], found: Sequence[Touch]) -> list[Touch]:
    """All blocks of two profiles of one image, by the time of their first touch.

    A block that is in both has the time of `known`, unless that alone is after the answer. So what
    one resume of a guest touches, and another one did not, is added, and the order of the others
    stays.
    """
    merged: list[Touch] = []
    for later in (False, True):
        for touches in (known, found):
            spans = _Spans(merged)
            part = [touch for touch in touches if touch.is_later is later]
            merged += [piece for touch in part for piece in spans.outside(touch)]
    return sorted(merged, key=lambda touch: touch.after)


def divide_touches(touches: Iterable[Touch]) -> tuple[list[Touch], list[Touch]]:
    """The touches up to a guest's first answer, and those after it."""
    first: list[Touch] = []
    later: list[Touch] = []
    for touch in touches:
        (later if touch.is_later else first).append(touch)
    return first, later


def without_marks(touches: Iterable[Touch]) -> list[Touch]:
    """The touches, as if all were up to the first answer."""
    return [replace(touch, after=touch.after % LATER) for touch in touches]


def by_address(touches: Iterable[Touch]) -> list[Touch]:
    """The touches of a guest that waits for all of them, in a shorter form: those at the first
    instant come first, and the others have the next one; each part is ordered by address.

    A desktop touches 8000 single pages until it has answered. By time they take more than a profile
    can hold; by address most of them are neighbours.
    """
    early = (replace(touch, after=min(touch.after, 1)) for touch in touches)
    return join_touches(sorted(early, key=lambda touch: (touch.after, touch.start)))


def join_touches(touches: Iterable[Touch]) -> list[Touch]:
    """The same touches, with one in the place of two of one instant that follow each other."""
    joined: list[Touch] = []
    for touch in touches:
        last = joined[-1] if joined else None
        if last is not None and (last.end, last.after) == (touch.start, touch.after):
            joined[-1] = replace(last, count=last.count + touch.count)
        else:
            joined.append(touch)
    return joined


def seconds_of(touches: Sequence[Touch]) -> float:
    """How long the recording of these touches lasted; 0 if there is none."""
    return touches[-1].after % LATER / 1000 if touches else 0.0


def pack_profile(profile: Profile) -> bytes:
    """Write a profile without a signature, as a home keeps it."""
    return pack_canonical(_to_map(profile))


def sign_profile(profile: Profile, private_key: Ed25519PrivateKey) -> bytes:
    """Write a profile to be passed on, signed by the user who answers for it."""
    fields = _to_map(profile) | {"key": private_key.public_key().public_bytes_raw()}
    return sign(fields, private_key, domain=SIGNATURE_DOMAIN, what=tr("the profile"))


def is_profile(start: bytes) -> bool:
    """Whether bytes begin like a profile; another signed thing may begin so, too."""
    return start.startswith((b"\x82\xa4body", b"\x85\xa7created"))


def open_profile(data: bytes) -> Profile:
    """Check a profile whole, signed or not, and return it.

    Raises:
        FormatError: not a profile, of an unknown version, or over a limit.
        MismatchError: the signature is not by the key that it names.
    """
    values = unpack_canonical(data, "a profile", MAX_PROFILE_SIZE)
    if "signature" not in values:
        return _from_map(values, signed=False)
    body, values, signature = unpack_signed(data, what="a profile", limit=MAX_PROFILE_SIZE)
    profile = _from_map(values, signed=True)
    assert profile.key is not None
    name = Name(profile.key, "profile")
    verify(name, body, signature, domain=SIGNATURE_DOMAIN, what=tr("the profile"))
    return profile


class _Spans:
    """The blocks of touches, for looking up."""

    def __init__(self, touches: Iterable[Touch]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for touch in sorted(touches, key=lambda touch: touch.start):
            if self._ends and touch.start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], touch.end)
            else:
                self._starts.append(touch.start)
                self._ends.append(touch.end)

    def outside(self, touch: Touch) -> Iterator[Touch]:
        """The pieces of a touch that are none of these blocks."""
        at = touch.start
        number = bisect.bisect_right(self._ends, at)
        while at < touch.end:
            last = number == len(self._starts)
            start = touch.end if last else min(self._starts[number], touch.end)
            if at < start:
                yield Touch(at, start - at, touch.after)
            if last:
                return
            at = max(at, self._ends[number])
            number += 1


def _pack(touches: Iterable[Touch]) -> bytes:
    numbers: list[int] = []
    end = after = 0
    for touch in touches:
        numbers += (touch.start - end, touch.count, touch.after - after)
        end, after = touch.start + touch.count, touch.after
    return zstandard.ZstdCompressor(level=19).compress(msgpack.packb(numbers))


def _touches(numbers: list[int], blocks: int) -> Iterable[Touch]:
    end = after = 0
    for at in range(0, len(numbers), 3):
        distance, count, pause = numbers[at : at + 3]
        touch = Touch(end + distance, count, after + pause)
        end, after = touch.start + count, touch.after
        if touch.start < 0 or count < 1 or end > blocks or not 0 <= pause <= after <= _MAX_AFTER:
            raise FormatError("a profile names blocks that the device does not have, or no time")
        yield touch


def _are_integers(numbers: list[object]) -> bool:
    return all(type(number) is int for number in numbers)


def _to_map(profile: Profile) -> dict[str, object]:
    return {
        "format": FORMAT,
        "image": profile.image_id,
        "size": profile.size,
        "created": profile.created,
        "touches": profile.touches,
    }


def _from_map(values: dict[str, object], *, signed: bool) -> Profile:
    check_format(values, (FORMAT,), tr("the profile"))
    fields = Fields(values, "a profile")
    fields.integer("format", FORMAT, FORMAT)
    profile = Profile(
        image_id=fields.data("image", _IMAGE_ID_SIZE),
        size=fields.integer("size", BLOCK_SIZE, MAX_IMAGE_SIZE),
        created=fields.integer("created", 0, MAX_TIME),
        touches=fields.blob("touches", MAX_TOUCHES_SIZE),
        key=fields.data("key", KEY_SIZE) if signed else None,
    )
    fields.end()
    unpack_touches(profile.touches, blocks=profile.size // BLOCK_SIZE)
    return profile
