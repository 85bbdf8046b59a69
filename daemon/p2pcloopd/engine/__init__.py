"""The BitTorrent engine: verified bytes of torrents, fetched when they are asked for.

`engine.open_engine` runs one; the modules `bt/session*` alone import libtorrent. Nothing here knows
images, manifests or commands.
"""
