"""Fetching and verifying all of an image."""

from __future__ import annotations

from typing import Any

from p2pcloop.client.progress import progress_bar
from p2pcloop.client.refs import report_waiting
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.words import tr_n


def fetch_all(ref: StoredRef, *, quiet: bool) -> None:
    """Have p2pcloopd fetch every layer of an image, and show how far it is."""
    total = ref.stored
    fetched = 0
    with progress_bar("fetching", quiet=quiet) as show:
        show(0, total)
        for layer in ref.signed.manifest.all_layers:

            def on_event(event: str, fields: dict[str, int], done: int = fetched) -> None:
                if event == "progress":
                    peers = fields["peers"]
                    show(
                        done + fields["have"],
                        total,
                        tr_n("{count} peer", "{count} peers", peers),
                    )
                report_waiting(event, fields)

            ref.client.call("fetch", on_event, torrent=layer.torrent)
            fetched += layer.index_length + layer.pack_length
            show(fetched, total)


def verify_layer(ref: StoredRef, layer: LayerRef, *, quiet: bool) -> dict[str, Any]:
    """Have p2pcloopd compare what is here of a layer with its hashes, and show how far it is.

    Returns:
        `pieces`, their number, and `bad`, the numbers of those that were wrong and are dropped.
    """
    total = layer.index_length + layer.pack_length
    with progress_bar("verifying", quiet=quiet) as show:
        show(0, total)

        def on_event(event: str, fields: dict[str, Any]) -> None:
            if event == "progress":
                show(min(fields["checked"] * layer.piece_length, total), total)
            report_waiting(event, fields)

        return ref.client.call("verify", on_event, torrent=layer.torrent)
