"""Signing a version of an image and having p2pcloopd serve it: manifest, then name record."""

from __future__ import annotations

from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.cli.control_client import ControlClient
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.record import Record, sign_record


def serve_version(
    client: ControlClient,
    signed: SignedManifest,
    key: Ed25519PrivateKey,
    *,
    public: bool = False,
    secret: bytes | None = None,
) -> dict[str, Any]:
    """Have p2pcloopd serve a signed manifest and its name record.

    Args:
        signed: its layers are seeded already.
        key: the one that signed it.
        public: announce it to the DHT and to trackers, as far as the node uses these.
        secret: of a private image; it goes into the link that is kept and returned.

    Returns:
        `id`, `name`, `link`, `manifest_torrent` and so on, as of the operation `seed_manifest`.

    Raises:
        MismatchError: another manifest is known under that version, or a newer one.
        P2pcloopError: p2pcloopd could not serve it.
    """
    answer = client.call("seed_manifest", manifest=signed.data, public=public, secret=secret)
    if public and not answer["announced"]:
        click.echo(
            "it is public, but announced nowhere: turn on `dht` or `announce_trackers` in"
            " config.toml (docs/daemon.md) and restart p2pcloopd",
            err=True,
        )
    manifest = signed.manifest
    record = Record(
        key=manifest.key,
        label=manifest.label,
        version=manifest.version,
        created=manifest.created,
        manifest_id=signed.id,
        manifest_torrent=answer["manifest_torrent"],
    )
    # p2pcloopd puts a public record into the DHT every hour, and cannot ask for a passphrase.
    handed = key.private_bytes_raw() if answer["public"] else None
    client.call("seed_record", record=sign_record(record, key), key=handed)
    return answer
