"""Fetching all of an image."""

from __future__ import annotations

from p2pcloop.client.refs import report_waiting
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import progress_bar


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
                    show(done + fields["have"], total, f"{peers} peer{'' if peers == 1 else 's'}")
                report_waiting(event, fields)

            ref.client.call("fetch", on_event, torrent=layer.torrent)
            fetched += layer.index_length + layer.pack_length
            show(fetched, total)
