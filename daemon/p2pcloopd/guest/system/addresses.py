"""The wire between a guest and its helper (libslirp): its addresses and its longest packet."""

from __future__ import annotations

GUEST_INTERFACE = "vec0"
PREFIX_LENGTH = 24
GUEST_ADDRESS = "10.0.2.15"
HOST_ADDRESS = "10.0.2.2"
NAMESERVER_ADDRESS = "10.0.2.3"

MTU = 15900
"""Bytes of the longest IP packet on the wire. Guest and helper spend their time on frames, not on
bytes: with 1500 a guest sends at a sixth of this speed. UML has 64 buffers ready for frames, of the
next power of two each; this fits 16 KiB with Ethernet's header and the kernel's own. Frames of
32 KiB are hardly faster, and stall: libslirp acknowledges two segments at once, a lone one after
200 ms, and its window holds few of these (docs/measurements/2026-11-guest-network.md)."""
