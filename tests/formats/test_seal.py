"""Sealing: known bytes, and nothing opens under another key, in another place, or altered."""

import hashlib
import hmac
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import MismatchError, UsageError
from p2pcloop.formats.manifest import KEY_CHECK_SIZE as MANIFEST_KEY_CHECK_SIZE
from p2pcloop.formats.seal import (
    KEY_CHECK_SIZE,
    TAG_SIZE,
    Seal,
    check_secret,
    key_check,
    new_secret,
)

SECRET = bytes(range(32))
SALT = bytes(range(100, 132))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, its first 32 bytes: extract, then one round of expand."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(key, info + b"\1", "sha256")


def test_a_part_is_sealed_as_the_document_says() -> None:
    seal = Seal(SECRET, SALT)
    cipher = AESGCM(hkdf(SECRET, SALT, b"p2pcloop layer 1"))
    for sealed, kind, number in (
        (seal.seal_map(b"map"), 1, 0),
        (seal.seal_page(7, b"map"), 2, 7),
        (seal.seal_chunk(1 << 40, b"map"), 3, 1 << 40),
    ):
        nonce = bytes([kind]) + number.to_bytes(11, "big")
        assert cipher.decrypt(nonce, sealed, None) == b"map"
        assert len(sealed) == len(b"map") + TAG_SIZE


def test_sealed_bytes_for_ever() -> None:
    assert Seal(SECRET, SALT).seal_chunk(4096, b"the content of a chunk").hex() == (
        "db30cbb4588364abd578fc359192d4d6e7aeae04798956cba008c3d5c916e0e41d78d76183c5"
    )
    assert key_check(SECRET).hex() == "c85e444d6903a1f865fef67c094f18ed"


def test_the_key_check_is_not_a_layers_key() -> None:
    assert key_check(SECRET) == hkdf(SECRET, b"", b"p2pcloop key check 1")[:16]
    assert len(key_check(SECRET)) == KEY_CHECK_SIZE == MANIFEST_KEY_CHECK_SIZE
    assert key_check(SECRET) != hkdf(SECRET, b"", b"p2pcloop layer 1")[:16]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 1 << 44), st.data())
def test_whoever_alters_or_moves_a_part_is_noticed(
    content: bytes, offset: int, data: st.DataObject
) -> None:
    seal = Seal(SECRET, SALT)
    sealed = seal.seal_chunk(offset, content)
    assert seal.open_chunk(offset, sealed) == content
    at = data.draw(st.integers(0, 8 * len(sealed) - 1))
    altered = bytearray(sealed)
    altered[at // 8] ^= 1 << at % 8
    attempts: list[Callable[[], bytes]] = [
        lambda: seal.open_chunk(offset, bytes(altered)),
        lambda: seal.open_chunk(offset, sealed[:-1]),
        lambda: seal.open_chunk(offset, sealed + b"\0"),
        lambda: seal.open_chunk(offset, b""),
        lambda: seal.open_chunk(offset + 1, sealed),
        lambda: seal.open_page(offset, sealed),
        lambda: seal.open_map(sealed),
        lambda: Seal(SECRET, SALT[::-1]).open_chunk(offset, sealed),
        lambda: Seal(SECRET[::-1], SALT).open_chunk(offset, sealed),
    ]
    for attempt in attempts:
        with pytest.raises(MismatchError, match="wrong key") as caught:
            attempt()
        assert caught.value.hint


def test_each_layer_and_secret_is_new() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert {len(secret) for secret in secrets} == {32}
    seals = [Seal.new(SECRET) for _ in range(50)]
    assert len(secrets) == len({seal.salt for seal in seals}) == 50
    assert len({seal.seal_map(b"equal") for seal in seals}) == 50


def test_a_secret_is_checked_before_anything_else() -> None:
    check_secret(None, None)
    check_secret(None, SECRET)
    check_secret(key_check(SECRET), SECRET)
    with pytest.raises(UsageError, match="private, and its key is not here") as none:
        check_secret(key_check(SECRET), None)
    with pytest.raises(MismatchError, match="wrong key") as wrong:
        check_secret(key_check(SECRET), hashlib.sha256(SECRET).digest())
    assert none.value.hint
    assert wrong.value.hint


@pytest.mark.parametrize("secret", [b"", bytes(16), bytes(31), bytes(33)])
def test_secrets_of_another_length_are_refused(secret: bytes) -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        key_check(secret)
    with pytest.raises(UsageError, match="32 bytes"):
        Seal.new(secret)
