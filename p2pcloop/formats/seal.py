"""Sealing: layers of private images, encrypted under a secret that is in the link and not in the
swarm (docs/formats/index.md, docs/security.md).

AES-256-GCM (NIST SP 800-38D). The key of a layer comes from the image's secret and the layer's salt
by HKDF-SHA256 (RFC 5869). The nonce is a byte for the kind of part and 11 bytes, big-endian, for
its place: 0 for the map, the number of a page of the chunk table, the offset in the pack of a
chunk. Each new layer has a random salt, and no place is sealed twice, so that no nonce is used
twice. A part that is moved to another place or another layer cannot be opened there.
"""

from __future__ import annotations

import hmac
import os
from typing import Self

from p2pcloop.errors import MismatchError, UsageError
from p2pcloop.words import tr

SECRET_SIZE = 32
SALT_SIZE = 32
TAG_SIZE = 16
"""Bytes by which a sealed part is longer than the part."""

KEY_CHECK_SIZE = 16
_LAYER_INFO = b"p2pcloop layer 1"
_CHECK_INFO = b"p2pcloop key check 1"
_MAP, _PAGE, _CHUNK = 1, 2, 3


class Seal:
    """Seals and opens the parts of one layer.

    Attributes:
        salt: 32 bytes, from the index header.
    """

    def __init__(self, secret: bytes, salt: bytes) -> None:
        """Derive the layer's key.

        Args:
            secret: of the image, 32 bytes.
            salt: of the layer, 32 bytes; for a new layer use `Seal.new`.
        """
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415  see _derive
            AESGCM,
        )

        _check_length(secret)
        self.salt = salt
        self._cipher = AESGCM(_derive(secret, salt, _LAYER_INFO, 32))

    @classmethod
    def new(cls, secret: bytes) -> Self:
        """The seal for one new layer, and for no other."""
        return cls(secret, os.urandom(SALT_SIZE))

    def seal_map(self, data: bytes) -> bytes:
        """Seal the map of the layer, once."""
        return self._cipher.encrypt(_nonce(_MAP, 0), data, None)

    def seal_page(self, number: int, data: bytes) -> bytes:
        """Seal a page of the chunk table; each number once."""
        return self._cipher.encrypt(_nonce(_PAGE, number), data, None)

    def seal_chunk(self, offset: int, data: bytes) -> bytes:
        """Seal the stored bytes of a chunk for `offset` of the pack; each offset once."""
        return self._cipher.encrypt(_nonce(_CHUNK, offset), data, None)

    def open_map(self, data: bytes) -> bytes:
        """Open the map that `seal_map` sealed.

        Raises (like the others that open):
            MismatchError: sealed under another key, for another place, or altered.
        """
        return self._open(_nonce(_MAP, 0), data)

    def open_page(self, number: int, data: bytes) -> bytes:
        """Open a page that `seal_page` sealed."""
        return self._open(_nonce(_PAGE, number), data)

    def open_chunk(self, offset: int, data: bytes) -> bytes:
        """Open the bytes that `seal_chunk` sealed."""
        return self._open(_nonce(_CHUNK, offset), data)

    def _open(self, nonce: bytes, data: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  see _derive

        try:
            return self._cipher.decrypt(nonce, data, None)
        except InvalidTag as err:
            raise MismatchError(
                "wrong key: a sealed part of a layer does not open",
                hint="take the publisher's link whole, with the #key= at its end",
            ) from err


def new_secret() -> bytes:
    """Make a random secret for a private image."""
    return os.urandom(SECRET_SIZE)


def key_check(secret: bytes) -> bytes:
    """Return 16 bytes that verify a secret, and reveal nothing else about it."""
    _check_length(secret)
    return _derive(secret, b"", _CHECK_INFO, KEY_CHECK_SIZE)


def check_secret(expected: bytes | None, secret: bytes | None) -> None:
    """Compare a secret with the `key_check` of a manifest, which is None if it is not private.

    Raises:
        UsageError: the image is private and there is no secret.
        MismatchError: it is another image's secret.
    """
    if expected is None:
        return
    if secret is None:
        raise UsageError(
            "the image is private, and its key is not here",
            hint="take the publisher's link whole, with the #key= at its end, in quotes",
        )
    if not hmac.compare_digest(expected, key_check(secret)):
        raise MismatchError(
            "wrong key: the key in the link is not that of this private image",
            hint="take the publisher's link whole, with the #key= at its end",
        )


def _nonce(kind: int, number: int) -> bytes:
    return bytes((kind,)) + number.to_bytes(11, "big")


def _derive(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    # Loaded for private images alone: it takes some milliseconds of each boot.
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def _check_length(secret: bytes) -> None:
    if len(secret) != SECRET_SIZE:
        raise UsageError(
            tr(
                "the key of a private image is {secret_size} bytes, not {secret_count}",
                secret_size=SECRET_SIZE,
                secret_count=len(secret),
            )
        )
