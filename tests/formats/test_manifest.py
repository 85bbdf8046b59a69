"""Signed manifests: exact bytes, and everything that may be wrong with bytes from outside."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.boot_parameters import MAX_ROOTS, BootParameters, Root
from p2pcloop.formats.manifest import (
    MAX_LAYERS,
    MAX_MANIFEST_SIZE,
    SIGNATURE_DOMAIN,
    LayerRef,
    Manifest,
    ManifestRef,
    compute_image_id,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.packing import pack_canonical, unpack_canonical
from p2pcloop.formats.profile import MAX_TOUCHES_SIZE, Touch, pack_touches
from tests.formats.test_profile import GOLDEN_TOUCHES

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = PRIVATE.public_key().public_bytes_raw()
DATA = Path(__file__).parent.parent / "data"
GOLDEN = (DATA / "manifest-v1.bin").read_bytes()
GOLDEN_2 = (DATA / "manifest-v2.bin").read_bytes()
GOLDEN_3 = (DATA / "manifest-v3.bin").read_bytes()
GOLDEN_4 = (DATA / "manifest-v4.bin").read_bytes()
GOLDEN_5 = (DATA / "manifest-v5.bin").read_bytes()
GOLDEN_6 = (DATA / "manifest-v6.bin").read_bytes()
LAYERS = (
    LayerRef(bytes(range(32)), bytes(range(20)), 365, 112, 12345, 1 << 14),
    LayerRef(bytes(range(32, 64)), bytes(range(20, 40)), 1 << 20, 4096, 0, 1 << 24),
)
MANIFEST = Manifest(
    key=KEY,
    label="debian-12",
    version=7,
    created=1_700_000_000,
    size=600 << 20,
    layers=LAYERS,
    boot=BootParameters("ext4", "quiet"),
    parent=ManifestRef(bytes(range(64, 96)), None),
)
MANIFEST_2 = replace(
    MANIFEST,
    message="Japanese input, my editor",
    previous=ManifestRef(bytes(range(96, 128)), bytes(range(20))),
    parent=ManifestRef(bytes(range(64, 96)), bytes(range(20, 40))),
    sources=(LayerRef(bytes(range(1, 33)), bytes(range(1, 21)), 400, 112, 999, 1 << 14),),
    key_check=bytes(range(16)),
)
MANIFEST_3 = replace(MANIFEST_2, profile=bytes.fromhex(GOLDEN_TOUCHES))
ROOTS = (Root(0, 500 << 20), Root(501 << 20, 4096))
MANIFEST_4 = replace(MANIFEST_3, boot=BootParameters("iso9660", "quiet", ROOTS))
MANIFEST_5 = replace(
    MANIFEST_2,
    layers=(),
    boot=BootParameters(),
    message="it had my keys in it",
    parent=None,
    sources=(),
    withdrawn=True,
)
MANIFEST_6 = replace(MANIFEST_4, length=(600 << 20) - 2048)


def sign(fields: object) -> bytes:
    """Sign anything as if it were the body of a manifest."""
    body = pack_canonical(fields) if isinstance(fields, dict) else msgpack.packb(fields)
    return pack_canonical({"body": body, "signature": PRIVATE.sign(SIGNATURE_DOMAIN + body)})


def fields_of(data: bytes) -> dict[str, Any]:
    outer: dict[str, Any] = msgpack.unpackb(data)
    inner: dict[str, Any] = msgpack.unpackb(outer["body"])
    return inner


def test_the_golden_manifest_is_read() -> None:
    signed = open_manifest(GOLDEN)
    assert signed.manifest == MANIFEST
    assert signed.data == GOLDEN
    assert signed.id.hex() == "4e99581dbf6a3bf63df439b3b8913dbb73c2a2b2fceff2b1e1eb4bb0851d5d53"
    assert signed.manifest.image_id.hex() == (
        "c675535cdd84c38e530f319bb2fff351d11f8f2545b3ff7eb35de8fee6a60c30"
    )


def test_the_golden_manifest_is_written_byte_by_byte() -> None:
    assert sign_manifest(MANIFEST, PRIVATE) == GOLDEN


def test_the_golden_manifest_of_format_2() -> None:
    assert open_manifest(GOLDEN_2).manifest == MANIFEST_2
    assert sign_manifest(MANIFEST_2, PRIVATE) == GOLDEN_2
    assert MANIFEST_2.private
    assert not MANIFEST.private
    assert MANIFEST_2.image_id == MANIFEST.image_id


def test_the_golden_manifest_of_format_3() -> None:
    assert open_manifest(GOLDEN_3).manifest == MANIFEST_3
    assert sign_manifest(MANIFEST_3, PRIVATE) == GOLDEN_3
    assert MANIFEST_3.image_id == MANIFEST.image_id


def test_the_golden_manifest_of_format_4() -> None:
    assert open_manifest(GOLDEN_4).manifest == MANIFEST_4
    assert sign_manifest(MANIFEST_4, PRIVATE) == GOLDEN_4
    assert MANIFEST_4.image_id == MANIFEST.image_id


def test_the_golden_withdrawal_of_format_5() -> None:
    assert open_manifest(GOLDEN_5).manifest == MANIFEST_5
    assert sign_manifest(MANIFEST_5, PRIVATE) == GOLDEN_5
    assert MANIFEST_5.pack_torrent is None


def test_the_golden_manifest_of_format_6() -> None:
    assert open_manifest(GOLDEN_6).manifest == MANIFEST_6
    assert sign_manifest(MANIFEST_6, PRIVATE) == GOLDEN_6
    assert MANIFEST_6.disk_length == (600 << 20) - 2048
    assert MANIFEST_4.disk_length == MANIFEST_4.size
    assert MANIFEST_6.image_id == MANIFEST_4.image_id, "overlays know blocks"


@pytest.mark.parametrize("length", [1, (600 << 20) - 4096, 600 << 20, -1])
def test_a_length_lies_within_the_last_block(length: int) -> None:
    with pytest.raises(FormatError, match="'length'"):
        sign_manifest(replace(MANIFEST_4, length=length), PRIVATE)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": MANIFEST.layers},
        {"sources": MANIFEST_2.sources},
        {"profile": MANIFEST_3.profile},
        {"boot": MANIFEST.boot},
    ],
)
def test_a_withdrawal_holds_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="withdraws an image, and holds one"):
        sign_manifest(replace(MANIFEST_5, **changes), PRIVATE)


def test_a_withdrawal_is_told_to_older_programs_by_its_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2pcloop.formats.manifest.FORMATS", (1, 2, 3, 4))
    with pytest.raises(FormatError, match="of format 5; this program reads") as caught:
        open_manifest(GOLDEN_5)
    assert "newer p2pcloop" in str(caught.value.hint)


@pytest.mark.parametrize(
    "changes",
    [
        {"message": "first"},
        {"previous": MANIFEST_2.previous},
        {"parent": MANIFEST_2.parent},
        {"sources": MANIFEST_2.sources},
        {"key_check": MANIFEST_2.key_check},
    ],
)
def test_format_2_is_written_where_it_is_needed_and_there_alone(changes: dict[str, Any]) -> None:
    plain = replace(MANIFEST, parent=None)
    assert fields_of(sign_manifest(plain, PRIVATE))["format"] == 1
    data = sign_manifest(replace(plain, **changes), PRIVATE)
    assert fields_of(data)["format"] == 2
    assert open_manifest(data).manifest == replace(plain, **changes)
    with pytest.raises(FormatError):
        open_manifest(sign(fields_of(data) | {"format": 1}))


def test_format_2_that_says_nothing_new_is_a_second_spelling() -> None:
    fields = fields_of(sign_manifest(replace(MANIFEST, parent=None), PRIVATE))
    with pytest.raises(FormatError, match="second spelling"):
        open_manifest(sign(fields | {"format": 2}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"message": "a\nb"}, "not printable"),
        ({"message": "x" * 1025}, "too long"),
        ({"message": b"x"}, "'message' of a manifest is not text"),
        ({"previous": bytes(32)}, "'previous' of a manifest is not a map"),
        ({"previous": {"id": bytes(32)}}, "has no field 'torrent'"),
        ({"previous": {"id": bytes(31), "torrent": bytes(20)}}, "not 32 bytes"),
        ({"parent": {"id": bytes(32), "torrent": None}}, "is not bytes"),
        ({"parent": {"id": bytes(32), "torrent": bytes(20), "url": ""}}, "unknown fields"),
        ({"sources": [{}]}, "a layer of a manifest has no field 'id'"),
        ({"sources": []}, "second spelling"),
        ({"message": ""}, "second spelling"),
        ({"sources": [{}] * 129}, "more than 128 items"),
        ({"sources": [fields_of(GOLDEN)["layers"][1]]}, "two layers of one layer_id"),
        ({"key_check": bytes(15)}, "not 16 bytes"),
    ],
)
def test_signed_lies_of_format_2_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_manifest(sign(fields_of(GOLDEN_2) | changes))


PROFILED = replace(MANIFEST_2, profile=pack_touches([Touch(0, 3, 0), Touch(9, 1, 12)]))


def test_format_3_is_written_where_there_is_a_profile() -> None:
    signed = sign_manifest(PROFILED, PRIVATE)
    assert fields_of(signed)["format"] == 3
    assert open_manifest(signed).manifest == PROFILED
    assert open_manifest(signed).manifest.image_id == MANIFEST_2.image_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "unknown fields"),
        ({"profile": b""}, "second spelling"),
        ({"profile": b"garbage"}, "damaged"),
        ({"profile": bytes(MAX_TOUCHES_SIZE + 1)}, "longer than"),
        ({"profile": pack_touches([Touch(1 << 32, 1, 0)])}, "does not have"),
    ],
)
def test_signed_lies_of_format_3_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = fields_of(sign_manifest(PROFILED, PRIVATE))
    with pytest.raises(FormatError, match=message):
        open_manifest(sign(fields | changes))


@pytest.mark.parametrize("manifest", [MANIFEST, MANIFEST_2, MANIFEST_3])
def test_format_4_is_written_where_there_are_roots(manifest: Manifest) -> None:
    roots = (Root(1 << 20, 1 << 20), Root(0, 1 << 20), Root(2 << 20, 4096, changes=True))
    boot = BootParameters("squashfs", "", roots)
    rooted = replace(manifest, boot=boot, parent=MANIFEST_2.parent)
    signed = sign_manifest(rooted, PRIVATE)
    assert fields_of(signed)["format"] == 4
    assert open_manifest(signed).manifest == rooted
    with pytest.raises(FormatError, match=r"second spelling|unknown fields"):
        open_manifest(sign(fields_of(signed) | {"format": 3}))


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        ([], "second spelling"),
        ({}, "is not a list"),
        ([{"offset": 0}], "no field 'size'"),
        ([{"offset": 0, "size": 4096, "path": "/etc"}], "unknown fields: 'path'"),
        ([{"offset": 0, "size": 0}], "'size' of a root of a manifest is not within"),
        ([{"offset": -4096, "size": 4096}], "'offset' of a root of a manifest is not within"),
        ([{"offset": 512, "size": 4096}], "blocks of 4096"),
        ([{"offset": 0, "size": 4097}], "blocks of 4096"),
        ([{"offset": 0, "size": (600 << 20) + 4096}], "outside the device"),
        ([{"offset": 8192, "size": 4096}, {"offset": 0, "size": 12288}], "overlap"),
        ([{"offset": 4096 * n, "size": 4096} for n in range(MAX_ROOTS + 1)], "more than 16"),
        ([{"offset": 0, "size": 4096, "changes": False}], "second spelling"),
        ([{"offset": 0, "size": 4096, "changes": 1}], "changes"),
    ],
)
def test_signed_lies_of_format_4_are_refused(roots: object, message: str) -> None:
    fields = fields_of(GOLDEN_4)
    fields["boot"]["roots"] = roots
    with pytest.raises(FormatError, match=message):
        open_manifest(sign(fields))


def test_the_image_id_names_size_and_layers_and_nothing_else() -> None:
    digest = hashlib.sha256(b"p2pcloop image 1\0" + (600 << 20).to_bytes(8, "little"))
    digest.update(LAYERS[0].layer_id + LAYERS[1].layer_id)
    assert MANIFEST.image_id == digest.digest()
    same = replace(MANIFEST, label="other", version=9, created=1, boot=BootParameters())
    assert same.image_id == MANIFEST.image_id
    assert compute_image_id(600 << 20, [LAYERS[1].layer_id, LAYERS[0].layer_id]) != same.image_id
    assert compute_image_id(601 << 20, [x.layer_id for x in LAYERS]) != same.image_id


def test_one_layer_without_parent() -> None:
    manifest = replace(MANIFEST, layers=LAYERS[:1], parent=None, boot=BootParameters())
    assert open_manifest(sign_manifest(manifest, PRIVATE)).manifest == manifest


def test_a_key_cannot_sign_for_another() -> None:
    with pytest.raises(MismatchError, match="another key"):
        sign_manifest(MANIFEST, Ed25519PrivateKey.from_private_bytes(bytes(32)))


@pytest.mark.parametrize(
    "manifest",
    [
        replace(MANIFEST, label="Debian"),
        replace(MANIFEST, version=0),
        replace(MANIFEST, size=600 << 20 | 1),
        replace(MANIFEST, layers=()),
        replace(MANIFEST, layers=(LAYERS[0], LAYERS[1], LAYERS[0])),
        replace(MANIFEST, layers=(LAYERS[0], replace(LAYERS[1], torrent=LAYERS[0].torrent))),
        replace(MANIFEST, boot=BootParameters("ext4", "a\nb")),
        replace(MANIFEST, layers=LAYERS * 200),
    ],
)
def test_what_breaks_a_limit_is_not_signed(manifest: Manifest) -> None:
    with pytest.raises(FormatError):
        sign_manifest(manifest, PRIVATE)


def test_a_wrong_signature_is_refused() -> None:
    outer = msgpack.unpackb(GOLDEN)
    other = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    signatures = {
        "another key's": other.sign(SIGNATURE_DOMAIN + outer["body"]),
        "without the domain": PRIVATE.sign(outer["body"]),
        "of something else": PRIVATE.sign(SIGNATURE_DOMAIN + outer["body"] + b"\0"),
        "zeros": bytes(64),
    }
    for signature in signatures.values():
        with pytest.raises(MismatchError, match="not signed by that key") as caught:
            open_manifest(pack_canonical(outer | {"signature": signature}))
        assert caught.value.hint


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_2, GOLDEN_4, GOLDEN_5, GOLDEN_6])
def test_any_flipped_byte_is_noticed(golden: bytes) -> None:
    for at in range(len(golden)):
        damaged = bytearray(golden)
        damaged[at] ^= 1 << at % 8
        with pytest.raises((FormatError, MismatchError)):
            open_manifest(bytes(damaged))


def test_cut_off_anywhere_or_followed_by_something() -> None:
    for length in range(len(GOLDEN)):
        with pytest.raises(FormatError):
            open_manifest(GOLDEN[:length])
    with pytest.raises(FormatError):
        open_manifest(GOLDEN + b"\0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 8}, "of format 8; this program reads 1 and 2 and 3 and 4 and 5 and 6 and 7"),
        ({"format": True}, "of format True"),
        ({"format": "1"}, "of format '1'"),
        ({"extra": 1}, "unknown fields: 'extra'"),
        ({"key": bytes(31)}, "'key' of a manifest is not 32 bytes"),
        ({"key": "k" * 32}, "'key' of a manifest is not bytes"),
        ({"label": "a/b"}, "is not a label"),
        ({"label": "../../etc"}, "is not a label"),
        ({"label": "a..b"}, "is not a label"),
        ({"label": "a\0"}, "not printable"),
        ({"label": "a\N{RIGHT-TO-LEFT OVERRIDE}b"}, "not printable"),
        ({"label": "d\N{CYRILLIC SMALL LETTER IE}bian"}, "is not a label"),
        ({"label": "DEBIAN"}, "is not a label"),
        ({"label": "a" * 65}, "too long"),
        ({"label": b"debian"}, "'label' of a manifest is not text"),
        ({"version": 0}, "'version' of a manifest is not within"),
        ({"version": -1}, "'version' of a manifest is not within"),
        ({"version": (1 << 53) + 1}, "'version' of a manifest is not within"),
        ({"version": 1.0}, "'version' of a manifest is not an integer"),
        ({"version": True}, "'version' of a manifest is not an integer"),
        ({"created": -1}, "'created' of a manifest is not within"),
        ({"created": 253_402_300_800}, "'created' of a manifest is not within"),
        ({"size": 0}, "'size' of a manifest is not within"),
        ({"size": 4097}, "not a multiple of 4096"),
        ({"size": (1 << 44) + 4096}, "'size' of a manifest is not within"),
        ({"layers": []}, "has no layers"),
        ({"layers": {}}, "'layers' of a manifest is not a list"),
        ({"layers": [1]}, "a layer of a manifest is not a map"),
        ({"layers": [{}]}, "a layer of a manifest has no field 'id'"),
        ({"layers": [{}] * (MAX_LAYERS + 1)}, "more than 256 items"),
        ({"boot": None}, "'boot' of a manifest is not a map"),
        ({"boot": {"root_type": "ext4"}}, "has no field 'append'"),
        ({"boot": {"root_type": "", "append": "", "kernel": "/bin/sh"}}, "unknown fields"),
        ({"boot": {"root_type": "x" * 33, "append": ""}}, "too long"),
        ({"boot": {"root_type": "", "append": "x" * 1025}}, "too long"),
        ({"boot": {"root_type": "", "append": "a\nb"}}, "not printable"),
        ({"parent": bytes(31)}, "'parent' of a manifest is not 32 bytes"),
        ({"parent": None}, "'parent' of a manifest is not bytes"),
    ],
)
def test_signed_lies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_manifest(sign(fields_of(GOLDEN) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": bytes(31)}, "not 32 bytes"),
        ({"torrent": bytes(32)}, "not 20 bytes"),
        ({"index": 79}, "'index' of a layer of a manifest is not within"),
        ({"index": 1 << 40}, "'index' of a layer of a manifest is not within"),
        ({"header": 79}, "'header' of a layer of a manifest is not within"),
        ({"header": 1 << 22, "index": 1 << 23}, "'header' of a layer of a manifest is not within"),
        ({"header": 366}, "longer than its index"),
        ({"pack": -1}, "'pack' of a layer of a manifest is not within"),
        ({"pack": (1 << 44) + 1}, "'pack' of a layer of a manifest is not within"),
        ({"piece": 0}, "'piece' of a layer of a manifest is not within"),
        ({"piece": (1 << 14) - 1}, "'piece' of a layer of a manifest is not within"),
        ({"piece": (1 << 24) + 1}, "'piece' of a layer of a manifest is not within"),
        ({"path": "/etc/passwd"}, "unknown fields: 'path'"),
    ],
)
def test_signed_lies_about_a_layer_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = fields_of(GOLDEN)
    fields["layers"][0] |= changes
    with pytest.raises(FormatError, match=message):
        open_manifest(sign(fields))


@pytest.mark.parametrize("key", ["format", "key", "label", "version", "size", "layers", "boot"])
def test_every_field_is_needed(key: str) -> None:
    fields = fields_of(GOLDEN)
    del fields[key]
    with pytest.raises(FormatError):
        open_manifest(sign(fields))


def test_the_outer_map_has_two_fields_only() -> None:
    outer = msgpack.unpackb(GOLDEN)
    for changed in (
        outer | {"note": 1},
        {"body": outer["body"]},
        outer | {"signature": bytes(63)},
        outer | {"body": "text"},
    ):
        with pytest.raises(FormatError):
            open_manifest(pack_canonical(changed))


def test_another_spelling_of_the_same_manifest_is_refused() -> None:
    """Were both taken, one manifest would have two ids."""
    fields = fields_of(GOLDEN)
    backwards = msgpack.packb(dict(reversed(fields.items())))
    long_integer = pack_canonical(fields).replace(b"\xa7version\x07", b"\xa7version\xcc\x07")
    assert msgpack.unpackb(backwards) == msgpack.unpackb(long_integer) == fields
    for body in (backwards, long_integer):
        signature = PRIVATE.sign(SIGNATURE_DOMAIN + body)
        with pytest.raises(FormatError, match="not a canonical"):
            open_manifest(pack_canonical({"body": body, "signature": signature}))
    outer = msgpack.unpackb(GOLDEN)
    with pytest.raises(FormatError, match="not a canonical"):
        open_manifest(msgpack.packb({"signature": outer["signature"], "body": outer["body"]}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({1: 2}),
        msgpack.packb({b"body": b""}),
        b"\x82\xa1a\x01\xa1a\x01",  # the same key twice
        b"\x81\xa1\xff\x01",  # a key that is not UTF-8
        b"\xdf\xff\xff\xff\xff",  # a map that claims 2^32 - 1 pairs
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list that claims as many
        b"\x81\xa1a\xc6\xff\xff\xff\xff",  # bytes that claim as many
        b"\x81\xa1a" + b"\x91" * 60_000 + b"\x01",  # lists in lists
        b"\x81\xa1a" * 20_000 + b"\x01",  # maps in maps
        bytes(MAX_MANIFEST_SIZE + 1),
    ],
)
def test_what_is_no_canonical_map(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_manifest(data)


def test_the_size_limit_comes_first() -> None:
    with pytest.raises(FormatError, match=f"over the limit of {MAX_MANIFEST_SIZE}"):
        open_manifest(GOLDEN.ljust(MAX_MANIFEST_SIZE + 1, b"\0"))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_manifest(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), values, max_size=4))
def test_canonical_maps_are_read_as_they_were_written(value: dict[str, Any]) -> None:
    assert unpack_canonical(pack_canonical(value), "it", 1 << 20) == value


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(fields_of(GOLDEN_2))), values)
def test_any_value_in_any_field_is_taken_whole_or_refused(key: str, value: object) -> None:
    try:
        signed = open_manifest(sign(fields_of(GOLDEN_2) | {key: value}))
    except (FormatError, MismatchError):
        return
    assert sign_manifest(signed.manifest, PRIVATE) == signed.data
