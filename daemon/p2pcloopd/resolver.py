"""Names to addresses, for all that connects: peers, mirrors, web seeds, trackers.

All names are asked about at once, each once, and each for a bounded time, so a dead name server
delays only those who use its names. A link is a stranger's text, so it matters, too, which
addresses a name may stand for (docs/security.md, "Whom a link makes you connect to"); an address
that a link names itself is asked as it stands there, and never comes here.

`install` makes it what `trio.socket.getaddrinfo` and `trio.open_tcp_stream` use.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import trio

from p2pcloop.words import tr

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOKUP_SECONDS = 12.0
"""How long a caller waits for a name. The system asks the second name server after 5 s, and
again after 5 more (resolv.conf(5), `timeout`), so less would never hear of it."""

KEPT_SECONDS = 60.0
"""How long an answer is used again. The system tells no time to live; this is a usual short one."""

MAX_KNOWN = 1024
"""Names that are remembered."""

CONCURRENCY = 64
"""Names that are looked up at once. A lookup is a thread that cannot be cancelled, so they have
threads of their own: those that read files are not kept waiting by dead names."""


@dataclass(slots=True)
class _Known:
    """What is known of a name.

    Attributes:
        addresses: the last answer.
        until: until when it is used again.
        public: whether it ever stood for a public address.
        done: set when the lookup that is under way ends; None where there is none.
        error: why the last lookup failed.
    """

    addresses: tuple[str, ...] = ()
    until: float = 0.0
    public: bool = False
    done: trio.Event | None = None
    error: OSError | None = None


class Resolver(trio.abc.HostnameResolver):
    """Looks names up."""

    def __init__(self) -> None:
        name = socket.gethostname().lower()
        self._own_names = frozenset({name, f"{name}.local"})  # the second as mDNS has it
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._limiter = trio.CapacityLimiter(CONCURRENCY)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002  the system's name for it
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As `socket.getaddrinfo`, of a host that is no address.

        Raises:
            socket.gaierror: there is no such name, no answer in time, or no address it may have.
        """
        name = (host or b"").decode("ascii").lower().rstrip(".")
        found: list[Any] = []
        for address in await self._addresses(name):
            try:
                found += socket.getaddrinfo(
                    address, port, family, type, proto, flags | socket.AI_NUMERICHOST
                )
            except socket.gaierror:
                continue  # of the other family
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, tr("the name has no address of that kind"))
        return found

    async def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int) -> tuple[str, str]:
        """See `socket.getnameinfo`."""
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags)

    async def _addresses(self, name: str) -> tuple[str, ...]:
        known = self._known.setdefault(name, _Known())
        self._known.move_to_end(name)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        if trio.current_time() < known.until:
            return known.addresses
        if known.done is None:
            known.done = trio.Event()
            # Not a task of the caller: others wait for the same, and a thread that was begun
            # goes on anyway.
            trio.lowlevel.spawn_system_task(self._look_up, name, known)
        with trio.move_on_after(LOOKUP_SECONDS):
            await known.done.wait()
            if known.error is not None:
                raise known.error
            return known.addresses
        raise socket.gaierror(
            socket.EAI_AGAIN,
            tr("no answer within {lookup_seconds:.0f} s", lookup_seconds=LOOKUP_SECONDS),
        )

    async def _look_up(self, name: str, known: _Known) -> None:
        assert known.done is not None, "set by the caller that starts this"
        try:
            found = await trio.to_thread.run_sync(
                _system_addresses, name, abandon_on_cancel=True, limiter=self._limiter
            )
            known.addresses = self._allowed(name, found, known)
            known.error, known.until = None, trio.current_time() + KEPT_SECONDS
        except OSError as err:
            known.error = err
        except UnicodeError:
            known.error = socket.gaierror(socket.EAI_NONAME, tr("that is no name"))
        except RuntimeError as err:  # no thread can be started
            known.error = socket.gaierror(
                socket.EAI_AGAIN, tr("nothing can be looked up now: {err}", err=err)
            )
        finally:
            known.done.set()
            known.done = None

    def _allowed(self, name: str, found: Iterable[str], known: _Known) -> tuple[str, ...]:
        """Those of its addresses that a name may stand for.

        Raises:
            socket.gaierror: there is none, and why.
        """
        addresses = {text: parse_address(text) for text in dict.fromkeys(found)}
        if name in self._own_names or name == "localhost" or name.endswith(".localhost"):
            return tuple(addresses)
        distant = {text: address for text, address in addresses.items() if not _is_near(address)}
        public = tuple(text for text, address in distant.items() if address.is_global)
        if public:
            known.public = True
            return public
        told = ", ".join(addresses)
        if not distant:
            raise socket.gaierror(
                socket.EAI_FAIL,
                tr(
                    "the name stands for {told}, this machine or its own link: an address like that"
                    " is asked only where it is named itself",
                    told=told,
                ),
            )
        if known.public:
            raise socket.gaierror(
                socket.EAI_FAIL,
                tr(
                    "the name stood for a public address and now stands for {told}: not asked",
                    told=told,
                ),
            )
        return tuple(distant)


def install() -> None:
    """Use a resolver of this kind in this run of trio, wherever a name is looked up."""
    trio.socket.set_custom_hostname_resolver(Resolver())


def parse_address(text: str) -> Address:
    """Read an address; one of IPv4 that is written as one of IPv6 is that of IPv4."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _is_near(address: Address) -> bool:
    """Whether an address is this machine's, or means something on its own link alone."""
    near = address.is_loopback or address.is_unspecified or address.is_link_local
    return near or address.is_multicast


def _system_addresses(name: str) -> list[str]:
    """Ask the system; takes as long as that does."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(address[0]).partition("%")[0] for *_, address in found]
