"""What a LAN consists of, as plain values: its network, its cards, its rules and its server's
settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network

from p2pcloop.errors import GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.guest.system.addresses import MTU, NAMESERVER_ADDRESS, Addresses

DOMAIN = "lan"
BRIDGE, UPLINK = "lan", "uplink"
"""The interfaces of a LAN's namespace: one to its guests, one to the outside."""

_MAC = "02:70:32:70:00:{:02x}"
BRIDGE_MAC = _MAC.format(1)
"""A bridge without an address of its own has the lowest of its ports': it would change when guests
come and go, and the others would lose their gateway."""

SLOTS = range(2, 254)
"""The last byte of the addresses that guests can have."""

_CANDIDATES = tuple(
    map(IPv4Network, ("10.88.0.0/24", "172.29.88.0/24", "192.168.188.0/24", "10.205.88.0/24"))
)


_NAMED_PREFIX = 8
"""A wider route leads to the rest of the world, as the default one does: VPNs have two of /1 in its
place. No private network is wider (RFC 1918)."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a guest: all of it follows from its number.

    Attributes:
        interface: the name of its tap.
        mac: as text.
        address: IPv4.
    """

    interface: str
    mac: str
    address: str


@dataclass(frozen=True, slots=True)
class LanPlan:
    """A LAN.

    Attributes:
        network: of its guests; of no concern to the outside.
    """

    network: IPv4Network

    @property
    def gateway(self) -> str:
        """The address that guests have as gateway and name server."""
        return str(self.network[1])

    def slot(self, number: int) -> Slot:
        """The place of a number of `SLOTS`."""
        return Slot(f"p{number}", _MAC.format(number), str(self.network[number]))

    def addresses(self, slot: Slot) -> Addresses:
        """What a guest in a place is told."""
        return Addresses(slot.address, self.network.prefixlen, self.gateway, self.gateway)

    def rules(self) -> str:
        """The rules of the LAN's namespace, as nft takes them.

        A guest sends only from its own addresses, and is no DHCP server to others. Of the namespace
        it reaches DHCP and DNS, and answers connections that the LAN's owner makes for its ports
        (lan_ports.py). All others of its connections go outside, where the filter of frames
        decides; none comes in. IPv6 passes in no form.
        """
        slots = [self.slot(number) for number in SLOTS]
        cards = ", ".join(f'"{s.interface}" . {s.mac} . {s.address}' for s in slots)
        macs = ", ".join(f'"{s.interface}" . {s.mac}' for s in slots)
        return _RULES.format(cards=cards, macs=macs, bridge=BRIDGE, uplink=UPLINK)

    def server_settings(self) -> str:
        """The settings of dnsmasq: an address for each card, names of guests, and DNS from the
        uplink's name server."""
        slots = [self.slot(number) for number in SLOTS]
        lines = [
            *(f"interface={BRIDGE}", "except-interface=lo", "bind-interfaces"),
            *("no-hosts", "addn-hosts=/run/hosts", "no-resolv", f"server={NAMESERVER_ADDRESS}"),
            *(f"domain={DOMAIN}", f"local=/{DOMAIN}/", "log-facility=-", "quiet-dhcp"),
            f"dhcp-range={self.network.network_address},static,{self.network.netmask},12h",
            *(f"dhcp-option=option:mtu,{MTU}", "dhcp-leasefile=/run/leases"),
            *("dhcp-authoritative", "dhcp-ignore-names", "no-ping", "user="),
            *(f"dhcp-host={slot.mac},{slot.address}" for slot in slots),
        ]
        return "".join(f"{line}\n" for line in lines)

    def hosts(self, guests: Mapping[str, Slot]) -> Sequence[str]:
        """Lines of hosts(5): guests by their names."""
        return [f"{slot.address} {name}.{DOMAIN} {name}" for name, slot in sorted(guests.items())]


def choose_network(routed: Iterable[IPv4Network]) -> LanPlan:
    """Return a LAN whose network hides none that this machine has a route to.

    Raises:
        GuestError: there is none.
    """
    taken = [network for network in routed if network.prefixlen >= _NAMED_PREFIX]
    for network in _CANDIDATES:
        if not any(network.overlaps(each) for each in taken):
            return LanPlan(network)
    lines = [
        f"{network} ({next(each for each in taken if network.overlaps(each))})"
        for network in _CANDIDATES
    ]
    raise GuestError(
        tr(
            "this machine has routes to each network that a LAN could have: {lines}",
            lines=", ".join(lines),
        ),
        hint="`ip route show table all` lists them; `--net user` needs no network of its own",
    )


_RULES = """
table bridge guests {{
    set cards {{
        type ifname . ether_addr . ipv4_addr
        elements = {{ {cards} }}
    }}
    set macs {{
        type ifname . ether_addr
        elements = {{ {macs} }}
    }}
    chain sent {{
        type filter hook prerouting priority -300; policy drop;
        iifname . ether saddr != @macs drop
        ether type arp iifname . arp saddr ether . arp saddr ip @cards accept
        ether type arp iifname . arp saddr ether @macs arp saddr ip 0.0.0.0 accept
        ether type ip udp sport 67 drop
        ether type ip iifname . ether saddr . ip saddr @cards accept
        ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp dport 67 accept
    }}
}}
table ip lan {{
    chain to_namespace {{
        type filter hook input priority 0; policy drop;
        iifname "lo" accept
        iifname "{bridge}" udp dport {{ 53, 67 }} accept
        iifname "{bridge}" tcp dport 53 accept
        iifname "{bridge}" icmp type echo-request accept
        iifname "{bridge}" ct direction reply ct state established,related accept
        iifname "{uplink}" ct state established,related accept
    }}
    chain through_namespace {{
        type filter hook forward priority 0; policy drop;
        iifname "{bridge}" oifname "{uplink}" accept
        iifname "{bridge}" oifname "{bridge}" accept
        iifname "{uplink}" oifname "{bridge}" ct state established,related accept
    }}
    chain outside {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{uplink}" masquerade
    }}
}}
"""
