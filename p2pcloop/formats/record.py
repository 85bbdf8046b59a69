"""Name records: the manifest that a name points to, signed by the key in the name.

A record is small enough for a DHT item (BEP 44: 1000 bytes). It names the newest version's manifest
and is verified without that manifest (docs/formats/record.md). Its form is that of
formats/signed.py.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.formats.manifest import ID_SIZE, INFO_HASH_SIZE
from p2pcloop.formats.name import KEY_SIZE, LABEL_MAX, Name, check_label
from p2pcloop.formats.packing import Fields
from p2pcloop.formats.signed import (
    MAX_TIME,
    MAX_VERSION,
    check_format,
    sign,
    unpack_signed,
    verify,
)
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

FORMAT_VERSION = 1
SIGNATURE_DOMAIN = b"p2pcloop record 1\0"
MAX_RECORD_SIZE = 512


@dataclass(frozen=True, slots=True)
class Record:
    """One version of a name.

    Attributes:
        key: the publisher's Ed25519 public key, 32 bytes.
        label: what the publisher calls the image.
        version: of the manifest; the higher one is the newer.
        created: of the manifest; seconds since 1970, UTC.
        manifest_id: SHA-256 of the manifest's body, 32 bytes.
        manifest_torrent: v1 info hash of the manifest's own torrent, 20 bytes.
    """

    key: bytes
    label: str
    version: int
    created: int
    manifest_id: bytes
    manifest_torrent: bytes

    @property
    def name(self) -> Name:
        """`@key/label`."""
        return Name(self.key, self.label)


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record whose signature was verified.

    Attributes:
        record: its content.
        data: the whole signed bytes, as they are passed on.
    """

    record: Record
    data: bytes


def sign_record(record: Record, private_key: Ed25519PrivateKey) -> bytes:
    """Return the signed bytes of a record.

    Raises:
        MismatchError: the private key is not the one that the record names.
        FormatError: the record breaks a limit of the format.
    """
    fields = {
        "format": FORMAT_VERSION,
        "key": record.key,
        "label": record.label,
        "version": record.version,
        "created": record.created,
        "manifest": record.manifest_id,
        "torrent": record.manifest_torrent,
    }
    data = sign(fields, private_key, domain=SIGNATURE_DOMAIN, what=tr("the record"))
    open_record(data)
    return data


def open_record(data: bytes) -> SignedRecord:
    """Check signed bytes whole and return the record.

    Raises:
        FormatError: not a record, of an unknown version, or over a limit.
        MismatchError: the signature is not by the key that the record names.
    """
    body, values, signature = unpack_signed(data, what="a record", limit=MAX_RECORD_SIZE)
    check_format(values, (FORMAT_VERSION,), tr("the record"))
    fields = Fields(values, "a record")
    fields.integer("format", FORMAT_VERSION, FORMAT_VERSION)
    record = Record(
        key=fields.data("key", KEY_SIZE),
        label=check_label(fields.text("label", LABEL_MAX)),
        version=fields.integer("version", 1, MAX_VERSION),
        created=fields.integer("created", 0, MAX_TIME),
        manifest_id=fields.data("manifest", ID_SIZE),
        manifest_torrent=fields.data("torrent", INFO_HASH_SIZE),
    )
    fields.end()
    verify(record.name, body, signature, domain=SIGNATURE_DOMAIN, what=tr("the record"))
    return SignedRecord(record, data)
