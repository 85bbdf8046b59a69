"""The addresses on the wire between a guest and its helper (libslirp)."""

from __future__ import annotations

GUEST_INTERFACE = "vec0"
PREFIX_LENGTH = 24
GUEST_ADDRESS = "10.0.2.15"
HOST_ADDRESS = "10.0.2.2"
NAMESERVER_ADDRESS = "10.0.2.3"
