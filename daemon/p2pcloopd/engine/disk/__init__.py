"""What a torrent has on this disk: files, have bits, metadata, and how they are made."""
