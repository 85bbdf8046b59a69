"""Name records: exact bytes, and everything that may be wrong with bytes from outside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats import manifest as manifests
from p2pcloop.formats.packing import pack_canonical
from p2pcloop.formats.record import (
    MAX_RECORD_SIZE,
    SIGNATURE_DOMAIN,
    Record,
    open_record,
    sign_record,
)

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
GOLDEN = (Path(__file__).parent.parent / "data" / "record-v1.bin").read_bytes()
RECORD = Record(
    key=PRIVATE.public_key().public_bytes_raw(),
    label="my-knoppix",
    version=3,
    created=1_700_000_000,
    manifest_id=bytes(range(32)),
    manifest_torrent=bytes(range(20)),
)


def fields_of(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(msgpack.unpackb(data)["body"])
    return fields


def sign(fields: dict[str, Any], domain: bytes = SIGNATURE_DOMAIN) -> bytes:
    body = pack_canonical(fields)
    return pack_canonical({"body": body, "signature": PRIVATE.sign(domain + body)})


def test_the_golden_record() -> None:
    assert open_record(GOLDEN).record == RECORD
    assert open_record(GOLDEN).data == GOLDEN
    assert sign_record(RECORD, PRIVATE) == GOLDEN


def test_the_longest_record_fits_in_a_dht_item() -> None:
    longest = replace(RECORD, label="a" * 64, version=1 << 53, created=253_402_300_799)
    assert len(sign_record(longest, PRIVATE)) <= MAX_RECORD_SIZE < 1000


def test_a_key_cannot_sign_for_another() -> None:
    with pytest.raises(MismatchError, match="another key"):
        sign_record(RECORD, Ed25519PrivateKey.from_private_bytes(bytes(32)))


def test_any_flipped_byte_is_noticed() -> None:
    for at in range(len(GOLDEN)):
        damaged = bytearray(GOLDEN)
        damaged[at] ^= 1 << at % 8
        with pytest.raises((FormatError, MismatchError)):
            open_record(bytes(damaged))


def test_a_signature_of_another_thing_is_none_of_a_record() -> None:
    with pytest.raises(MismatchError, match=r"the record of @.* is not signed by that key"):
        open_record(sign(fields_of(GOLDEN), manifests.SIGNATURE_DOMAIN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "the record is of format 2; this program reads 1"),
        ({"format": True}, "of format True"),
        ({"label": "a/b"}, "is not a label"),
        ({"label": ".."}, "is not a label"),
        ({"label": "a\0"}, "not printable"),
        ({"label": "d\N{CYRILLIC SMALL LETTER IE}bian"}, "is not a label"),
        ({"version": 0}, "'version' of a record is not within"),
        ({"version": 1 << 63}, "'version' of a record is not within"),
        ({"created": -1}, "'created' of a record is not within"),
        ({"manifest": bytes(31)}, "not 32 bytes"),
        ({"torrent": bytes(32)}, "not 20 bytes"),
        ({"key": bytes(31)}, "not 32 bytes"),
        ({"path": "/etc/passwd"}, "unknown fields: 'path'"),
    ],
)
def test_signed_lies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_record(sign(fields_of(GOLDEN) | changes))


@pytest.mark.parametrize("key", sorted(fields_of(GOLDEN)))
def test_every_field_is_needed(key: str) -> None:
    fields = fields_of(GOLDEN)
    del fields[key]
    with pytest.raises(FormatError):
        open_record(sign(fields))


def test_the_size_limit_comes_first() -> None:
    with pytest.raises(FormatError, match="over the limit of 512"):
        open_record(GOLDEN.ljust(513, b"\0"))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=MAX_RECORD_SIZE))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_record(data)
