"""Manifests: what an image is made of, signed by the key in its name (docs/formats/manifest.md).

A signed manifest is canonical msgpack: `{"body": bytes, "signature": 64 bytes}`. The body is
canonical msgpack itself and holds the public key. The signature is Ed25519 (RFC 8032) over
`SIGNATURE_DOMAIN + body`, so that it can be taken for nothing else. The manifest's id is the
SHA-256 of the body.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.index import FIXED, MAX_HEADER_SIZE, MAX_INDEX_SIZE
from p2pcloop.formats.name import KEY_SIZE, LABEL_MAX, Name, check_label
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE

FORMAT_VERSION = 1
SIGNATURE_DOMAIN = b"p2pcloop manifest 1\0"
ID_SIZE = 32
INFO_HASH_SIZE = 20
MAX_MANIFEST_SIZE = 64 << 10
MAX_LAYERS = 256
MIN_PIECE_LENGTH = 1 << 14
MAX_PIECE_LENGTH = 1 << 24
"""As much as p2pcloopd accepts in a torrent."""

_MAX_TIME = 253_402_300_799
"""The last second of the year 9999, the latest that a date can be told of."""


@dataclass(frozen=True, slots=True)
class LayerRef:
    """Where a layer is found and what proves it.

    Attributes:
        layer_id: SHA-256 of the layer's index header, which commits to its map and chunk table.
        torrent: v1 info hash, 20 bytes, of the torrent with the index and the pack.
        index_length: bytes of the index, the torrent's first file.
        header_length: bytes of the index header, at the start of the index.
        pack_length: bytes of the pack, the torrent's second file.
        piece_length: bytes of the torrent's pieces, so that a reader knows from the have file
            alone what of the layer is here.
    """

    layer_id: bytes
    torrent: bytes
    index_length: int
    header_length: int
    pack_length: int
    piece_length: int


@dataclass(frozen=True, slots=True)
class BootParameters:
    """What the guest's kernel is told; never a path or a program of the host.

    Attributes:
        root_type: the file system of the device ("ext4"), or "" where it is not known.
        append: words for the kernel's command line.
    """

    root_type: str = ""
    append: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of an image.

    Attributes:
        key: the publisher's Ed25519 public key, 32 bytes.
        label: what the publisher calls it.
        version: counts up from 1 with every manifest under one name.
        created: seconds since 1970, UTC.
        size: bytes of the device, a multiple of 4096.
        layers: from base to top, at least one.
        boot: for the guest.
        parent: id of the manifest that this one was made from, or None.
    """

    key: bytes
    label: str
    version: int
    created: int
    size: int
    layers: tuple[LayerRef, ...]
    boot: BootParameters = BootParameters()
    parent: bytes | None = None

    @property
    def name(self) -> Name:
        """`@key/label`."""
        return Name(self.key, self.label)

    @property
    def image_id(self) -> bytes:
        """SHA-256 that names the content: the size and the layers, whoever published them."""
        return compute_image_id(self.size, [layer.layer_id for layer in self.layers])


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest whose signature was verified.

    Attributes:
        manifest: its content.
        id: SHA-256 of the signed body, 32 bytes.
        data: the whole signed bytes, as they are passed on.
    """

    manifest: Manifest
    id: bytes
    data: bytes


def compute_image_id(size: int, layer_ids: list[bytes]) -> bytes:
    """Name the content of a stack of layers: SHA-256 of a domain, the size and the layer ids."""
    digest = hashlib.sha256(b"p2pcloop image 1\0" + size.to_bytes(8, "little"))
    for layer_id in layer_ids:
        digest.update(layer_id)
    return digest.digest()


def sign_manifest(manifest: Manifest, private_key: Ed25519PrivateKey) -> bytes:
    """Return the signed bytes of a manifest.

    Raises:
        MismatchError: the private key is not the one that the manifest names.
        FormatError: the manifest breaks a limit of the format.
    """
    if private_key.public_key().public_bytes_raw() != manifest.key:
        raise MismatchError("the manifest names another key than the one that is to sign it")
    body = pack_canonical(_to_map(manifest))
    signature = private_key.sign(SIGNATURE_DOMAIN + body)
    data = pack_canonical({"body": body, "signature": signature})
    open_manifest(data)
    return data


def open_manifest(data: bytes) -> SignedManifest:
    """Check signed bytes whole and return what they say.

    Raises:
        FormatError: not a manifest, of an unknown version, or over a limit.
        MismatchError: the signature is not by the key that the manifest names.
    """
    outer = Fields(unpack_canonical(data, "a manifest", MAX_MANIFEST_SIZE), "a manifest")
    signature = outer.data("signature", 64)
    body = outer.blob("body", MAX_MANIFEST_SIZE)
    outer.end()
    manifest = _from_map(unpack_canonical(body, "a manifest", MAX_MANIFEST_SIZE))
    try:
        Ed25519PublicKey.from_public_bytes(manifest.key).verify(signature, SIGNATURE_DOMAIN + body)
    except (InvalidSignature, ValueError) as err:
        raise MismatchError(
            f"the manifest of {manifest.name} is not signed by that key",
            hint="it was changed on the way or forged: ask the publisher for a new link",
        ) from err
    return SignedManifest(manifest, hashlib.sha256(body).digest(), data)


def _to_map(manifest: Manifest) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "key": manifest.key,
        "label": manifest.label,
        "version": manifest.version,
        "created": manifest.created,
        "size": manifest.size,
        "layers": [
            {
                "id": layer.layer_id,
                "torrent": layer.torrent,
                "index": layer.index_length,
                "header": layer.header_length,
                "pack": layer.pack_length,
                "piece": layer.piece_length,
            }
            for layer in manifest.layers
        ],
        "boot": {"root_type": manifest.boot.root_type, "append": manifest.boot.append},
    }
    if manifest.parent is not None:
        fields["parent"] = manifest.parent
    return fields


def _from_map(values: dict[str, Any]) -> Manifest:
    if values.get("format") != FORMAT_VERSION:
        raise FormatError(
            f"the manifest is of format {values.get('format')!r}; this program reads "
            f"{FORMAT_VERSION}",
            hint="a newer p2pcloop may read it",
        )
    fields = Fields(values, "a manifest")
    fields.integer("format", FORMAT_VERSION, FORMAT_VERSION)
    boot = fields.map("boot")
    manifest = Manifest(
        key=fields.data("key", KEY_SIZE),
        label=check_label(fields.text("label", LABEL_MAX)),
        version=fields.integer("version", 1, 1 << 53),
        created=fields.integer("created", 0, _MAX_TIME),
        size=fields.integer("size", BLOCK_SIZE, MAX_IMAGE_SIZE),
        layers=tuple(_read_layer(item) for item in fields.items("layers", MAX_LAYERS)),
        boot=BootParameters(boot.text("root_type", 32), boot.text("append", 1024)),
        parent=fields.optional_data("parent", ID_SIZE),
    )
    boot.end()
    fields.end()
    if manifest.size % BLOCK_SIZE:
        raise FormatError(f"the manifest's size is not a multiple of {BLOCK_SIZE} bytes")
    if not manifest.layers:
        raise FormatError("the manifest has no layers")
    for what in ("layer_id", "torrent"):
        if len({getattr(layer, what) for layer in manifest.layers}) < len(manifest.layers):
            raise FormatError(f"the manifest has two layers of one {what}")
    return manifest


def _read_layer(values: object) -> LayerRef:
    fields = Fields(values, "a layer of a manifest")
    layer = LayerRef(
        layer_id=fields.data("id", ID_SIZE),
        torrent=fields.data("torrent", INFO_HASH_SIZE),
        index_length=fields.integer("index", FIXED.size, MAX_INDEX_SIZE),
        header_length=fields.integer("header", FIXED.size, MAX_HEADER_SIZE),
        pack_length=fields.integer("pack", 0, MAX_IMAGE_SIZE),
        piece_length=fields.integer("piece", MIN_PIECE_LENGTH, MAX_PIECE_LENGTH),
    )
    fields.end()
    if layer.header_length > layer.index_length:
        raise FormatError("the header of a layer is longer than its index")
    return layer
