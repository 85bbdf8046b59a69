"""The state of a node on disk: its home, the pieces that are here, keys and names."""
