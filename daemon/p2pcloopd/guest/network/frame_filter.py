"""What a guest may put on its wire, decided by a socket filter in the host's kernel.

libslirp's `--disable-host-loopback` closes only the host's alias (10.0.2.2): a guest that sends to
127.0.0.1, to 0.0.0.0 or to another address of this machine itself, or to any port of the name
server's alias where the host's resolver is on its loopback, still reaches the host's services. A
classic BPF program on the helper's socket drops such frames before the helper sees them, at no cost
in throughput. IPv6, and with it IPv4 in IPv6's clothes, passes in no form.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from p2pcloop.errors import GuestError
from p2pcloop.words import tr
from p2pcloopd.guest.system.addresses import WIRE_NETWORK

_SO_ATTACH_FILTER = 26
_TUNATTACHFILTER = 0x401054D5  # linux/if_tun.h
_MAX_INSTRUCTIONS = 4096

# Instruction codes: linux/bpf_common.h. Offsets: Ethernet header (14), then IPv4 (RFC 791).
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_KEEP, _RECALL = 0x02, 0x60
_LOAD_HALF_INDEXED, _LOAD_BYTE_INDEXED, _LOAD_X_HEADER_LENGTH = 0x48, 0x50, 0xB1
_MASK, _JUMP, _EQUAL, _ANY_BIT, _RETURN = 0x54, 0x05, 0x15, 0x45, 0x06
_ARP, _IPV4, _ICMP, _TCP, _UDP, _DNS, _DHCP_SERVER = 0x0806, 0x0800, 1, 6, 17, 53, 67
_TCP_FLAGS, _SYN, _SYN_AND_ACK = 13, 0x02, 0x12  # the first is counted from the TCP header on

_EVERYBODY = IPv4Address("255.255.255.255")

NEVER = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host (RFC 1122)
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local: a cloud's metadata service, with its credentials
        "224.0.0.0/4",  # multicast comes back to this machine's own listeners
        "240.0.0.0/4",
    )
)
"""Where no frame goes, whatever addresses this machine has."""

_Instruction = tuple[int, int, int, int]
"""Code, operand, instructions to skip if true, and if false."""

Place = tuple[str, int]
"""Where a guest finds a port of this machine: an IPv4 address, and a TCP port there."""

_ACCEPT: _Instruction = (_RETURN, 0xFFFFFFFF, 0, 0)
_DROP: _Instruction = (_RETURN, 0, 0, 0)
_LOAD_DESTINATION: _Instruction = (_LOAD_WORD, 30, 0, 0)
_NO_FRAGMENT: tuple[_Instruction, ...] = (
    (_LOAD_HALF, 20, 0, 0),
    (_ANY_BIT, 0x3FFF, 0, 1),
    _DROP,
)
"""Only the first fragment of a packet tells the port."""

_ONLY_IPV4: tuple[_Instruction, ...] = (
    (_LOAD_HALF, 12, 0, 0),
    (_EQUAL, _ARP, 0, 1),
    _ACCEPT,
    (_EQUAL, _IPV4, 1, 0),
    _DROP,
)
"""Accepts ARP, drops all that is neither ARP nor IPv4, and goes on."""


def install(
    helper_end: socket.socket,
    nameserver: str,
    own: Iterable[IPv4Network] = (),
    *,
    alias: str = "",
    opened: Sequence[Place] = (),
) -> None:
    """Let `helper_end` receive only ARP, and IPv4 that goes neither to `own` nor to `NEVER`. At
    `nameserver` only DNS passes; of broadcasts only the guest's DHCP, which the helper answers.
    A filter that was installed before is replaced, also where this fails for `opened`: by one that
    opens no port.

    Args:
        alias: leads to this machine's loopback, where the helper does not close it: no connection
            begins there, but for those to `opened`.
        opened: TCP ports that are open to the guest, whatever else is closed.

    Raises:
        GuestError: `own` or `opened` are more than a filter can hold: some hundred of each.
    """
    own = list(own)
    if _is_attached(helper_end, _guests(nameserver, own, alias, opened)):
        return
    _attach(helper_end, _guests(nameserver, own, alias))
    raise GuestError(
        tr("the kernel's filter of frames has no room for {count} opened ports", count=len(opened)),
        hint="give `--open` less often",
    )


def install_on_tap(tap: int, nameserver: str, own: Iterable[IPv4Network] = ()) -> None:
    """Let a helper that reads from the descriptor of a tap receive only what `install` lets pass.

    Raises:
        GuestError: as for `install`.
    """
    _attach(tap, _guests(nameserver, own))


def install_single(helper_end: socket.socket, address: str, port: int) -> None:
    """Let `helper_end` receive only ARP, and TCP to one port of one address."""
    service = _only_service(int(IPv4Address(address)), (_TCP,), port)
    _attach(helper_end, [*_ONLY_IPV4, *service, _DROP])


def _attach(end: socket.socket | int, program: list[_Instruction]) -> None:
    """Put a program on a socket, or on the descriptor of a tap.

    Raises:
        GuestError: it is longer than the kernel allows.
    """
    if not _is_attached(end, program):
        raise GuestError(
            "this machine has too many addresses of its own to keep a guest away from them",
            hint="boot with `--net none`",
        )


def _is_attached(end: socket.socket | int, program: list[_Instruction]) -> bool:
    """Put a program on a socket, or on the descriptor of a tap; False if it is longer than the
    kernel allows."""
    if len(program) > _MAX_INSTRUCTIONS:
        return False
    code = b"".join(
        struct.pack("=HBBI", operation, true, false, operand)
        for operation, operand, true, false in program
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program_header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    try:
        if isinstance(end, int):
            fcntl.ioctl(end, _TUNATTACHFILTER, program_header)
        else:
            end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program_header)
    except OSError as err:
        if err.errno == errno.ENOMEM:  # more than the sysctl net.core.optmem_max
            return False
        raise
    return True


def _guests(
    nameserver: str, own: Iterable[IPv4Network], alias: str = "", opened: Sequence[Place] = ()
) -> list[_Instruction]:
    """The program for the frames of guests."""
    doors = _doors(alias, opened)
    # Older versions of libslirp take any other address of the wire for the alias, too.
    wire = (WIRE_NETWORK,) if alias else ()
    closed = [*NEVER, *wire, *sorted(set(own))]
    return _program(int(IPv4Address(nameserver)), closed, doors)


def _program(
    nameserver: int, closed: Iterable[IPv4Network], doors: Sequence[_Instruction]
) -> list[_Instruction]:
    program = [
        *_ONLY_IPV4,
        *doors,
        *_only_service(nameserver, (_TCP, _UDP), _DNS),
        *_only_service(int(_EVERYBODY), (_UDP,), _DHCP_SERVER),
    ]
    # The kernel makes some twenty instructions of one that looks into a frame.
    program += [_LOAD_DESTINATION, (_KEEP, 0, 0, 0)]
    for network in closed:
        program += [
            (_RECALL, 0, 0, 0),
            (_MASK, int(network.netmask), 0, 0),
            (_EQUAL, int(network.network_address), 0, 1),
            _DROP,
        ]
    return [*program, _ACCEPT]


def _doors(alias: str, opened: Sequence[Place]) -> list[_Instruction]:
    """Let packets for opened ports pass, and nothing else begin at the alias of the loopback."""
    ports: dict[str, set[int]] = {}
    for address, port in opened:
        ports.setdefault(address, set()).add(port)
    answered = ports.pop(alias, set())
    program = [each for address, those in ports.items() for each in _may_pass(address, those)]
    if alias:
        program += _only_answers(alias, answered)
    return program


def _may_pass(address: str, ports: Iterable[int]) -> list[_Instruction]:
    """Let packets for TCP ports of an address pass; of all others the rest decides."""
    service = [(_LOAD_X_HEADER_LENGTH, 14, 0, 0), (_LOAD_HALF_INDEXED, 14 + 2, 0, 0)]
    service += _each_passes(ports)
    return [
        _LOAD_DESTINATION,
        (_EQUAL, int(IPv4Address(address)), 0, 4),
        (_LOAD_HALF, 20, 0, 0),
        (_ANY_BIT, 0x3FFF, 2, 0),
        (_LOAD_BYTE, 23, 0, 0),
        (_EQUAL, _TCP, 1, 0),
        (_JUMP, len(service), 0, 0),  # of many ports it is longer than a condition can skip
        *service,
    ]


def _each_passes(ports: Iterable[int]) -> list[_Instruction]:
    """Let a packet pass whose port was loaded, if it is one of these."""
    return [each for port in sorted(ports) for each in ((_EQUAL, port, 0, 1), _ACCEPT)]


def _only_answers(alias: str, ports: Iterable[int]) -> list[_Instruction]:
    """At an address that leads to the loopback: let connections begin to some TCP ports alone, and
    segments pass of connections that are there: those of forwarded ports have begun here. The
    helper itself answers ICMP and DHCP."""
    service = [
        *_NO_FRAGMENT,
        (_LOAD_BYTE, 23, 0, 0),
        (_EQUAL, _ICMP, 0, 1),
        _ACCEPT,
        (_LOAD_X_HEADER_LENGTH, 14, 0, 0),
        (_EQUAL, _UDP, 0, 4),
        (_LOAD_HALF_INDEXED, 14 + 2, 0, 0),
        (_EQUAL, _DHCP_SERVER, 0, 1),
        _ACCEPT,
        _DROP,
        (_EQUAL, _TCP, 1, 0),
        _DROP,
        # libslirp makes a connection of a segment with SYN and without ACK, and of no other.
        (_LOAD_BYTE_INDEXED, 14 + _TCP_FLAGS, 0, 0),
        (_MASK, _SYN_AND_ACK, 0, 0),
        (_EQUAL, _SYN, 1, 0),
        _ACCEPT,
        (_LOAD_HALF_INDEXED, 14 + 2, 0, 0),
    ]
    service += [*_each_passes(ports), _DROP]
    # Of many ports it is longer than a condition can skip: 255 instructions.
    skip = (_JUMP, len(service), 0, 0)
    return [_LOAD_DESTINATION, (_EQUAL, int(IPv4Address(alias)), 1, 0), skip, *service]


def _only_service(address: int, protocols: tuple[int, ...], port: int) -> list[_Instruction]:
    """Let only packets for `port` pass to `address`."""
    only_protocols = [
        # From a match, over the remaining comparisons and the drop.
        (_EQUAL, protocol, len(protocols) - number, 0)
        for number, protocol in enumerate(protocols)
    ]
    service = [
        *_NO_FRAGMENT,
        (_LOAD_BYTE, 23, 0, 0),
        *only_protocols,
        _DROP,
        (_LOAD_X_HEADER_LENGTH, 14, 0, 0),
        (_LOAD_HALF_INDEXED, 14 + 2, 0, 0),
        (_EQUAL, port, 0, 1),
        _ACCEPT,
        _DROP,
    ]
    return [_LOAD_DESTINATION, (_EQUAL, address, 0, len(service)), *service]
