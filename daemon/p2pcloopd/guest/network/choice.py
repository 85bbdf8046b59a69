"""What network a guest is to have: the values of `--net`."""

from __future__ import annotations

import os
import re
import socket
from typing import Literal

from p2pcloop.errors import GuestError, NotHereError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.guest.network import taps
from p2pcloopd.programs import find_program

Kind = Literal["none", "user", "lan", "bridge"]

DEFAULT_LAN = "lan"

_LAN_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_INTERFACE = re.compile(r"[^/\s:]{1,15}")
_FORM = "give none, user, lan, lan:NAME or bridge:INTERFACE"


@dataclass(frozen=True, slots=True)
class Network:
    """A value of `--net`.

    Attributes:
        name: of the LAN, or of the host's bridge; empty for the other kinds.
    """

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        plain = not self.name or (self.kind == "lan" and self.name == DEFAULT_LAN)
        return self.kind if plain else f"{self.kind}:{self.name}"

    def check(self) -> None:
        """Refuse what this machine or user cannot have, before anything is made.

        Raises:
            UsageError: it needs root.
            NotHereError: there is no such interface.
            GuestError: the interface is no bridge, or is down; or as of `taps.check_device`.
            NeedsPackageError: a program is missing.
        """
        if self.kind == "lan":
            for program, package in LAN_PROGRAMS.items():
                find_program(program, package)
        elif self.kind == "bridge":
            check_bridge(self.name)
        if self.kind in ("lan", "bridge"):
            taps.check_device()


LAN_PROGRAMS = {
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "libslirp-helper": "libslirp-helper",
}
"""What a LAN consists of: program → package of Debian."""


def parse_network(text: str) -> Network:
    """Read a value of `--net`.

    Raises:
        UsageError: it is none.
    """
    kind, colon, name = text.partition(":")
    match kind:
        case "none" | "user" if not colon:
            return Network(kind)
        case "lan" if not colon:
            return Network("lan", DEFAULT_LAN)
        case "lan" if _LAN_NAME.fullmatch(name):
            return Network("lan", name)
        case "lan":
            hint = tr("give 1 to 32 of a to z, 0 to 9 and hyphens after `lan:`")
            raise UsageError(tr("{name!r} cannot be the name of a LAN", name=name), hint=hint)
        case "bridge" if _INTERFACE.fullmatch(name) and name not in (".", ".."):
            return Network("bridge", name)
        case "bridge":
            hint = tr("`--net bridge:br0`; `ip link show type bridge` lists this machine's bridges")
            raise UsageError(
                tr("{name!r} cannot be the name of an interface", name=name), hint=hint
            )
    raise UsageError(tr("--net {text!r} is no network", text=text), hint=_FORM)


def check_bridge(name: str) -> None:
    """Refuse to put a guest on a bridge where that cannot be; errors as for `Network.check`."""
    if os.geteuid() != 0:
        raise UsageError(
            tr("only root may put a guest on the bridge {name}", name=name),
            hint="run it as root (sudo), or give `--net lan` or `--net user`, which need no root",
        )
    there = [other for _, other in socket.if_nameindex()]
    if name not in there:
        raise NotHereError(
            tr("this machine has no interface {name}", name=name),
            hint=tr(
                "it has {there}; a bridge is made by `ip link add {name} type bridge`",
                there=", ".join(sorted(there)),
                name=name,
            ),
        )
    if not taps.is_bridge(name):
        raise GuestError(
            tr("the interface {name} is no bridge", name=name),
            hint=tr(
                "make one and put {name} into it: `ip link add br0 type bridge`, `ip link set"
                " {name} master br0`, then move its addresses to br0 (in Debian: bridge_ports"
                " in /etc/network/interfaces, package bridge-utils), and give `--net"
                " bridge:br0`. An interface of WLAN cannot be in a bridge: `--net lan` or"
                " `--net user` work there",
                name=name,
            ),
        )
    if not taps.is_up(name):
        raise GuestError(
            tr("the bridge {name} is down", name=name),
            hint=tr("`ip link set {name} up`, as root", name=name),
        )
