"""The state of a node on disk: its home, what of each torrent is here, keys and names."""
