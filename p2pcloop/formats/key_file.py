"""A signing key as text, plain or protected by a passphrase (docs/formats/key.md).

    p2pcloop-key 1 ed25519                      p2pcloop-key 2 ed25519
    seed <64 hexadecimal digits>                scrypt <log2 of N> <salt, 32 hexadecimal digits>
    public <52 characters, as in names>         public <52 characters>
                                                sealed <96 hexadecimal digits>

A protected seed is sealed by AES-256-GCM (NIST SP 800-38D) under the key that scrypt (RFC 7914,
with r = 8 and p = 1) makes of the passphrase and the salt. A salt seals once, so the nonce is 12
zero bytes; the lines before `sealed` are authenticated with it.
"""

from __future__ import annotations

import os
import re
import unicodedata

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.name import format_key, parse_key
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAX_KEY_TEXT = 512
"""More bytes than a key's text has."""

NEW_COST = 17
"""log2 of scrypt's N for new files: 128 MiB and some 0.4 s for each guess."""

_SALT_SIZE = 16
_NONCE = bytes(12)
_PLAIN = re.compile(rb"p2pcloop-key 1 ed25519\nseed ([0-9a-f]{64})\npublic ([a-z2-7]{52})\n")
_PROTECTED = re.compile(
    # At most 2^18, 256 MiB: an imported file must not fill the memory.
    rb"(p2pcloop-key 2 ed25519\nscrypt (1[0-8]) ([0-9a-f]{32})\npublic ([a-z2-7]{52})\n)"
    rb"sealed ([0-9a-f]{96})\n"
)
_HINT = "put a copy of it back; a new key would be a new name"


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key's text, checked as far as possible without the passphrase.

    Attributes:
        text: all of it.
        public: the public key, 32 bytes. That of a protected key is verified when it is opened.
        protected: whether a passphrase is needed.
    """

    text: bytes
    public: bytes
    protected: bool

    def open(self, passphrase: str | None, what: str) -> Ed25519PrivateKey:
        """The private key.

        Args:
            passphrase: of a protected key; ignored otherwise.
            what: the key, for messages.

        Raises:
            MismatchError: the passphrase is not that of the key.
            FormatError: the seed is not that of the public key.
        """
        key = Ed25519PrivateKey.from_private_bytes(self._seed(passphrase or "", what))
        if key.public_key().public_bytes_raw() != self.public:
            raise FormatError(
                tr("{what} is damaged: its seed is not that of its public key", what=what),
                hint=_HINT,
            )
        return key

    def _seed(self, passphrase: str, what: str) -> bytes:
        if plain := _PLAIN.fullmatch(self.text):
            return bytes.fromhex(plain[1].decode())
        found = _PROTECTED.fullmatch(self.text)
        assert found is not None, "made by parse_key_text alone"
        head, cost, salt, _, sealed = found.groups()
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  see _derive
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        key = _derive(passphrase, bytes.fromhex(salt.decode()), int(cost))
        try:
            return AESGCM(key).decrypt(_NONCE, bytes.fromhex(sealed.decode()), head)
        except InvalidTag as err:
            raise MismatchError(tr("that is not the passphrase of {what}", what=what)) from err


def parse_key_text(text: bytes, what: str) -> KeyText:
    """Check a key's text whole; messages never contain its secret part.

    Raises:
        FormatError: it is no key, or is damaged.
    """
    plain, protected = _PLAIN.fullmatch(text), _PROTECTED.fullmatch(text)
    found = plain or protected
    if found is None:
        raise FormatError(
            tr("{what} is not a key of p2pcloop, or is damaged", what=what), hint=_HINT
        )
    try:
        public = parse_key(found[2 if plain else 4].decode())
    except FormatError as err:
        raise FormatError(tr("{what} is damaged: {err}", what=what, err=err), hint=_HINT) from err
    key = KeyText(text, public, protected is not None)
    if plain:
        key.open(None, what)
    return key


def format_key_text(key: Ed25519PrivateKey, passphrase: str | None) -> bytes:
    """Write a key as text, protected if a passphrase is given."""
    seed, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    if passphrase is None:
        return f"p2pcloop-key 1 ed25519\nseed {seed.hex()}\npublic {format_key(public)}\n".encode()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  see _derive

    salt = os.urandom(_SALT_SIZE)
    head = (
        f"p2pcloop-key 2 ed25519\nscrypt {NEW_COST} {salt.hex()}\npublic {format_key(public)}\n"
    ).encode()
    sealed = AESGCM(_derive(passphrase, salt, NEW_COST)).encrypt(_NONCE, seed, head)
    return head + b"sealed " + sealed.hex().encode() + b"\n"


def _derive(passphrase: str, salt: bytes, cost: int) -> bytes:
    # Loaded for protected keys alone: p2pcloopd opens none, and starts sooner.
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # noqa: PLC0415

    # One passphrase may be typed as different code points: RFC 8265, 4.2.2, rule 4.
    typed = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    return Scrypt(salt=salt, length=32, n=1 << cost, r=8, p=1).derive(typed)
