"""Sans-io protocols: bytes in, events out; no socket, clock or log."""
