"""The BitTorrent engine: verified bytes of torrents, fetched when they are asked for.

`engine.open_engine` runs one; the modules `session*` alone import libtorrent. Nothing here knows
images, manifests or commands.
"""
