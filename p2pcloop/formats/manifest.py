"""Manifests: the content of an image, signed by the key in its name (docs/formats/manifest.md).

A signed manifest is an envelope (formats/signed.py) around a canonical msgpack map. The manifest's
id is the SHA-256 of the body. The lowest sufficient format is written, so that a manifest that was
published before keeps its id: format 3 only with a profile, format 4 only with a root of several
file systems, format 5 only for a withdrawal, format 6 only for a device whose length is no multiple
of 4096 bytes, format 7 only for a state.

A withdrawal is a version without content. So everything that passes versions on passes it on, too:
records, mirrors, the DHT, histories; and a later version may follow it.
"""

from __future__ import annotations

import hashlib
from dataclasses import field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError
from p2pcloop.formats.boot_parameters import BootParameters, read_boot
from p2pcloop.formats.index import FIXED, MAX_HEADER_SIZE, MAX_INDEX_SIZE
from p2pcloop.formats.machine_state import MachineState, read_machine_state
from p2pcloop.formats.name import KEY_SIZE, LABEL_MAX, Name, check_label
from p2pcloop.formats.packing import Fields
from p2pcloop.formats.profile import MAX_TOUCHES_SIZE, unpack_touches
from p2pcloop.formats.signed import (
    MAX_TIME,
    MAX_VERSION,
    check_format,
    sign,
    unpack_signed,
    verify,
)
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

FORMATS = (1, 2, 3, 4, 5, 6, 7)
SIGNATURE_DOMAIN = b"p2pcloop manifest 1\0"
ID_SIZE = 32
INFO_HASH_SIZE = 20
KEY_CHECK_SIZE = 16
MAX_MANIFEST_SIZE = 64 << 10
MAX_LAYERS = 256
MAX_SOURCES = 128
MAX_MESSAGE = 1024
MIN_PIECE_LENGTH = 1 << 14
MAX_PIECE_LENGTH = 1 << 24
"""Bytes of a layer at most: p2pcloopd accepts no larger torrent."""


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer: its torrent, and the hash that proves it.

    Attributes:
        layer_id: SHA-256 of the layer's index header, which commits to its map and chunk table.
        torrent: v1 info hash, 20 bytes, of the torrent with the index and the pack.
        index_length: bytes of the index, the torrent's first file.
        header_length: bytes of the index header, at the start of the index.
        pack_length: bytes of the pack, the torrent's second file.
        piece_length: bytes of the torrent's pieces: with the have file they say which bytes of
            the layer are here.
    """

    layer_id: bytes
    torrent: bytes
    index_length: int
    header_length: int
    pack_length: int
    piece_length: int


@dataclass(frozen=True, slots=True)
class ManifestRef:
    """A reference to another manifest.

    Attributes:
        id: SHA-256 of its body, 32 bytes.
        torrent: v1 info hash of its own torrent, 20 bytes; None only in manifests of format 1.
    """

    id: bytes
    torrent: bytes | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of an image.

    Attributes:
        key: the publisher's Ed25519 public key, 32 bytes.
        label: what the publisher calls it.
        version: counts up from 1 with every manifest under one name.
        created: seconds since 1970, UTC.
        size: bytes of the device in whole blocks: a multiple of 4096.
        layers: from base to top, at least one; none of a withdrawal.
        boot: for the guest.
        message: the publisher's words about this version, one line.
        previous: the version before, under the same name; None for the first.
        parent: the version that it was made from, under any name, or None.
        sources: layers that are not of the stack, in whose packs chunks lie that its layers refer
            to.
        key_check: if layers are sealed, the check of the secret (formats/seal.py); else None.
        profile: packed touches of a boot (formats/profile.py), or b"" if none is attached.
        withdrawn: the publisher takes the image back; `message` may say why.
        length: bytes of the device if they are no multiple of 4096; else 0, and 0 of a state.
        machine: of a state, what it takes to go on; None of an image that is no state.
    """

    key: bytes
    label: str
    version: int
    created: int
    size: int
    layers: tuple[LayerRef, ...]
    boot: BootParameters = field(default_factory=BootParameters)
    message: str = ""
    previous: ManifestRef | None = None
    parent: ManifestRef | None = None
    sources: tuple[LayerRef, ...] = ()
    key_check: bytes | None = None
    profile: bytes = b""
    withdrawn: bool = False
    length: int = 0
    machine: MachineState | None = None

    @property
    def disk_size(self) -> int:
        """Bytes of the disk in whole blocks: of all of the device, unless it is a state."""
        return self.size if self.machine is None else self.machine.disk.size

    @property
    def disk_length(self) -> int:
        """Exact bytes of the disk: of all of the device, unless it is a state. Zeros fill its last
        block."""
        return self.length or self.size if self.machine is None else self.machine.disk_length

    @property
    def private(self) -> bool:
        """Whether it can be read only with the secret in its link."""
        return self.key_check is not None

    @property
    def pack_torrent(self) -> bytes | None:
        """The top layer's torrent, which other BitTorrent clients fetch; None for a withdrawal."""
        return self.layers[-1].torrent if self.layers else None

    @property
    def all_layers(self) -> tuple[LayerRef, ...]:
        """Every layer that a reader may need bytes of: the stack and the sources."""
        return self.layers + self.sources

    @property
    def name(self) -> Name:
        """`@key/label`."""
        return Name(self.key, self.label)

    @property
    def image_id(self) -> bytes:
        """SHA-256 of the size and the layers' ids, for any publisher and name."""
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
    """The id of a stack of layers' content: SHA-256 of a domain, the size and the layer ids."""
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
    data = sign(_to_map(manifest), private_key, domain=SIGNATURE_DOMAIN, what=tr("the manifest"))
    open_manifest(data)
    return data


def open_manifest(data: bytes) -> SignedManifest:
    """Check signed bytes whole and return the manifest.

    Raises:
        FormatError: not a manifest, of an unknown version, or over a limit.
        MismatchError: the signature is not by the key that the manifest names.
    """
    body, fields, signature = unpack_signed(data, what="a manifest", limit=MAX_MANIFEST_SIZE)
    manifest = _from_map(fields)
    verify(manifest.name, body, signature, domain=SIGNATURE_DOMAIN, what=tr("the manifest"))
    return SignedManifest(manifest, hashlib.sha256(body).digest(), data)


def _to_map(manifest: Manifest) -> dict[str, Any]:
    later = _later_fields(manifest)
    fields: dict[str, Any] = {
        "format": _format_of(manifest, later),
        "key": manifest.key,
        "label": manifest.label,
        "version": manifest.version,
        "created": manifest.created,
        "size": manifest.size,
        "layers": [_pack_layer(layer) for layer in manifest.layers],
        "boot": manifest.boot.to_map(),
    }
    if fields["format"] == 1 and manifest.parent is not None:
        fields["parent"] = manifest.parent.id
    return fields | later


def _format_of(manifest: Manifest, later: dict[str, Any]) -> int:
    """The lowest sufficient format."""
    if manifest.machine is not None:
        return 7
    if manifest.length:
        return 6
    if manifest.withdrawn:
        return 5
    if manifest.boot.roots:
        return 4
    if manifest.profile:
        return 3
    return 2 if later else 1


def _later_fields(manifest: Manifest) -> dict[str, Any]:
    """The fields that format 1 lacks, except `roots`; default values are absent."""
    fields: dict[str, Any] = {}
    if manifest.profile:
        fields["profile"] = manifest.profile
    if manifest.message:
        fields["message"] = manifest.message
    if manifest.previous is not None:
        fields["previous"] = {"id": manifest.previous.id, "torrent": manifest.previous.torrent}
    if manifest.sources:
        fields["sources"] = [_pack_layer(layer) for layer in manifest.sources]
    if manifest.key_check is not None:
        fields["key_check"] = manifest.key_check
    if manifest.withdrawn:
        fields["withdrawn"] = True
    if manifest.length:
        fields["length"] = manifest.length
    if manifest.machine is not None:
        fields["machine"] = manifest.machine.to_map()
    later = bool(fields or manifest.boot.roots)
    if manifest.parent is not None and (later or manifest.parent.torrent is not None):
        fields["parent"] = {"id": manifest.parent.id, "torrent": manifest.parent.torrent}
    return fields


def _pack_layer(layer: LayerRef) -> dict[str, Any]:
    return {
        "id": layer.layer_id,
        "torrent": layer.torrent,
        "index": layer.index_length,
        "header": layer.header_length,
        "pack": layer.pack_length,
        "piece": layer.piece_length,
    }


def _from_map(values: dict[str, Any]) -> Manifest:
    number = check_format(values, FORMATS, tr("the manifest"))
    fields = Fields(values, "a manifest")
    fields.integer("format", number, number)
    size = fields.integer("size", BLOCK_SIZE, MAX_IMAGE_SIZE)
    machine = read_machine_state(fields.map("machine")) if "machine" in fields else None
    manifest = Manifest(
        key=fields.data("key", KEY_SIZE),
        label=check_label(fields.text("label", LABEL_MAX)),
        version=fields.integer("version", 1, MAX_VERSION),
        created=fields.integer("created", 0, MAX_TIME),
        size=size,
        layers=tuple(_read_layer(item) for item in fields.items("layers", MAX_LAYERS)),
        boot=read_boot(fields.map("boot"), size if machine is None else machine.disk.size),
        **(_read_parent(fields) if number == 1 else _read_later(fields)),
        profile=_read_profile(fields) if number >= 3 else b"",
        withdrawn=fields.boolean("withdrawn") if "withdrawn" in fields else False,
        length=fields.integer("length", size - BLOCK_SIZE + 1, size - 1)
        if "length" in fields
        else 0,
        machine=machine,
    )
    fields.end()
    _check(manifest)
    if _to_map(manifest) != values:
        # No empty fields, and no higher format than necessary: a manifest must not have two ids.
        raise FormatError("the manifest has a second spelling")
    return manifest


def _check(manifest: Manifest) -> None:
    if manifest.size % BLOCK_SIZE:
        raise FormatError(
            tr("the manifest's size is not a multiple of {block_size} bytes", block_size=BLOCK_SIZE)
        )
    if manifest.withdrawn:
        parts = manifest.all_layers or manifest.profile or manifest.machine
        if parts or manifest.boot != BootParameters():
            raise FormatError("the manifest withdraws an image, and holds one")
    elif not manifest.layers:
        raise FormatError("the manifest has no layers")
    if manifest.profile:
        unpack_touches(manifest.profile, blocks=manifest.size // BLOCK_SIZE)
    if manifest.machine is not None:
        _check_state(manifest, manifest.machine)
    layers = manifest.all_layers
    for what in ("layer_id", "torrent"):
        if len({getattr(layer, what) for layer in layers}) < len(layers):
            raise FormatError(tr("the manifest has two layers of one {what}", what=what))


def _check_state(manifest: Manifest, machine: MachineState) -> None:
    if manifest.size != machine.size:
        raise FormatError("the parts of a state are not the whole of its device")
    if manifest.length:
        raise FormatError("the length of a state is that of its parts")


def _read_parent(fields: Fields) -> dict[str, Any]:
    """Format 1 names the parent by its id alone."""
    parent = fields.optional_data("parent", ID_SIZE)
    return {"parent": None if parent is None else ManifestRef(parent, None)}


def _read_later(fields: Fields) -> dict[str, Any]:
    return {
        "message": fields.text("message", MAX_MESSAGE) if "message" in fields else "",
        "previous": _read_ref(fields, "previous"),
        "parent": _read_ref(fields, "parent"),
        "sources": tuple(
            _read_layer(item)
            for item in (fields.items("sources", MAX_SOURCES) if "sources" in fields else ())
        ),
        "key_check": fields.optional_data("key_check", KEY_CHECK_SIZE),
    }


def _read_profile(fields: Fields) -> bytes:
    return fields.blob("profile", MAX_TOUCHES_SIZE) if "profile" in fields else b""


def _read_ref(fields: Fields, key: str) -> ManifestRef | None:
    if key not in fields:
        return None
    inner = fields.map(key)
    ref = ManifestRef(inner.data("id", ID_SIZE), inner.data("torrent", INFO_HASH_SIZE))
    inner.end()
    return ref


def _read_layer(values: object) -> LayerRef:
    fields = Fields(values, tr("a layer of a manifest"))
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
