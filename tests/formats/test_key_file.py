"""Keys as text: plain ones, and those that a passphrase protects."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError, P2pcloopError
from p2pcloop.formats import key_file
from p2pcloop.formats.key_file import MAX_KEY_TEXT, format_key_text, parse_key_text

# RFC 8032, section 7.1, test 1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
GOLDEN = Path(__file__).parents[1] / "data" / "key-v2.key"
PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guess costs is not what is tested here."""
    monkeypatch.setattr(key_file, "NEW_COST", 10)


def test_the_golden_file_opens() -> None:
    text = GOLDEN.read_bytes()
    assert len(text) < MAX_KEY_TEXT
    key = parse_key_text(text, "it")
    assert (key.protected, key.public) == (True, PUBLIC)
    assert key.open(PASSPHRASE, "it").private_bytes_raw() == SEED


def test_the_golden_file_is_what_its_document_says() -> None:
    """Opened by hand, from docs/formats/key.md alone."""
    lines = GOLDEN.read_text().splitlines(keepends=True)
    _, cost, salt = lines[1].split()
    key = Scrypt(salt=bytes.fromhex(salt), length=32, n=1 << int(cost), r=8, p=1).derive(
        PASSPHRASE.encode()
    )
    sealed = bytes.fromhex(lines[3].split()[1])
    assert AESGCM(key).decrypt(bytes(12), sealed, "".join(lines[:3]).encode()) == SEED


@pytest.mark.parametrize("passphrase", [None, "x", "correct horse", "ü" * 40, " ", "a\nb"])
def test_what_is_written_can_be_read(passphrase: str | None) -> None:
    text = format_key_text(KEY, passphrase)
    key = parse_key_text(text, "it")
    assert key.protected == (passphrase is not None)
    assert key.public == PUBLIC
    assert key.open(passphrase, "it").private_bytes_raw() == SEED
    assert (SEED.hex().encode() in text) == (passphrase is None)


def test_each_copy_has_a_salt_of_its_own() -> None:
    one, other = (format_key_text(KEY, "x").splitlines() for _ in range(2))
    assert one[2] == other[2]
    assert one[1] != other[1]
    assert one[3] != other[3]


@pytest.mark.parametrize("wrong", [None, "", "correct horse ", "Correct horse", "correct"])
def test_a_wrong_passphrase_is_one_clear_error(wrong: str | None) -> None:
    key = parse_key_text(GOLDEN.read_bytes(), "the key k")
    with pytest.raises(MismatchError, match=r"^that is not the passphrase of the key k$"):
        key.open(wrong, "the key k")


def test_one_passphrase_typed_in_two_ways_is_one() -> None:
    text = format_key_text(KEY, "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    key = parse_key_text(text, "it")
    assert key.open("cafe\N{COMBINING ACUTE ACCENT}", "it").private_bytes_raw() == SEED


@settings(deadline=None)
@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    text = bytearray(GOLDEN.read_bytes().replace(b"scrypt 14", b"scrypt 10"))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(P2pcloopError) as caught:
        parse_key_text(bytes(text), "it").open(PASSPHRASE, "it")
    assert SEED.hex()[:8] not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("cost", ["9", "19", "99", "-1", "1e1"])
def test_what_would_take_too_much_memory_is_refused(cost: str) -> None:
    text = GOLDEN.read_bytes().replace(b"scrypt 14", f"scrypt {cost}".encode())
    with pytest.raises(FormatError):
        parse_key_text(text, "it")


@given(st.binary(max_size=300))
def test_other_bytes_are_no_key(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_key_text(data, "it")
