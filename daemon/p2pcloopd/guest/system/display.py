"""The part of a guest's first root that lets its programs reach the guest's X server."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from p2pcloopd.guest.system.addresses import (
    DISPLAY,
    DISPLAY_GUEST_ADDRESS,
    DISPLAY_INTERFACE,
    DISPLAY_PREFIX_LENGTH,
)
from p2pcloopd.guest.system.initramfs import Part

_PLACE = "/dev/.p2pcloop"
_AUTHORITY = f"{_PLACE}/Xauthority"

_VARIABLES = {"DISPLAY": DISPLAY, "XAUTHORITY": _AUTHORITY}


def display_part(authority: bytes, variables: Mapping[str, str]) -> Part:
    """Return the part of a first root for a guest with a display.

    Args:
        authority: an Xauthority file with the display's cookie.
        variables: more of the environment of programs on the display.
    """
    variables = {**_VARIABLES, **variables}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    return Part(
        steps=("display-card",),
        applets=("chmod", "cp", "ip"),
        settings={
            "DISPLAY_CARD": DISPLAY_INTERFACE,
            "DISPLAY_GUEST": f"{DISPLAY_GUEST_ADDRESS}/{DISPLAY_PREFIX_LENGTH}",
        },
        files=(("Xauthority", authority), ("display", "".join(lines).encode())),
    )


def display_words() -> str:
    """Return the words for the kernel by which an init, and what it starts, find the display."""
    words = [f"{name}={value}" for name, value in _VARIABLES.items()]
    # systemd gives its services nothing of its own environment but what such words name.
    return " ".join([*words, *(f"systemd.setenv={word}" for word in words)])
