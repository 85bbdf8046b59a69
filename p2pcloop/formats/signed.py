"""The envelope of signed data: canonical msgpack `{"body": bytes, "signature": 64 bytes}`.

The body is canonical msgpack itself and holds the signer's public key. The signature is Ed25519
(RFC 8032) over a domain and the body: a signature of one kind of data is invalid for another kind.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.name import Name
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.words import tr

MAX_TIME = 253_402_300_799
"""The last second of the year 9999: dates have four digits for the year."""

MAX_VERSION = 1 << 53
"""Every JSON reader represents it exactly."""


def sign(
    fields: dict[str, Any], private_key: Ed25519PrivateKey, *, domain: bytes, what: str
) -> bytes:
    """Return the signed bytes of a map whose field `key` is the signer's public key.

    Raises:
        MismatchError: the private key is not the one that the map names.
    """
    if private_key.public_key().public_bytes_raw() != fields["key"]:
        raise MismatchError(
            tr("{what} names another key than the one that is to sign it", what=what)
        )
    body = pack_canonical(fields)
    return pack_canonical({"body": body, "signature": private_key.sign(domain + body)})


def unpack_signed(data: bytes, *, what: str, limit: int) -> tuple[bytes, dict[str, Any], bytes]:
    """Return body, the body's fields and the signature, none of which is verified yet.

    Raises:
        FormatError: over the limit, or not such an envelope.
    """
    outer = Fields(unpack_canonical(data, what, limit), what)
    signature = outer.data("signature", 64)
    body = outer.blob("body", limit)
    outer.end()
    return body, unpack_canonical(body, what, limit), signature


def verify(name: Name, body: bytes, signature: bytes, *, domain: bytes, what: str) -> None:
    """Check that the key in `name` signed the body.

    Raises:
        MismatchError: it did not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(name.key).verify(signature, domain + body)
    except (InvalidSignature, ValueError) as err:
        raise MismatchError(
            tr("{what} of {name} is not signed by that key", what=what, name=name),
            hint="it was changed on the way or forged: fetch it anew from its signer",
        ) from err


def check_format(fields: dict[str, Any], known: tuple[int, ...], what: str) -> int:
    """Return the number of the format, before other fields are read.

    Raises:
        FormatError: it is not one of `known`.
    """
    number = fields.get("format")
    if type(number) is int and number in known:
        return number
    raise FormatError(
        tr(
            "{what} is of format {number!r}; this program reads {str}",
            what=what,
            number=number,
            str=" and ".join(map(str, known)),
        ),
        hint="a newer p2pcloop may read it",
    )
