"""The DHT (BEP 5) in libtorrent's session: signed items by key and salt (BEP 44), and peers.

libtorrent chooses an item's sequence number itself (the highest that it finds, plus one) and does
not put an item again; items live for two hours at the nodes that keep them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import libtorrent as lt
import trio

from p2pcloop.errors import UsageError
from p2pcloop.words import tr
from p2pcloopd.engine.bt.session import Session
from p2pcloopd.engine.disk.record import Peer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

MAX_SALT = 64
MAX_VALUE = 990
"""BEP 44 has a salt of 64 bytes at most, and a value of 1000, bencoded: `990:` stands before it."""

GET_SECONDS = 30
PUT_SECONDS = 60
"""How long these may take, joining the DHT included. A node that does not answer costs 15 s, and a
put looks for the item first."""

SETTLE_SECONDS = 2
"""How long a newer value is waited for once one is there."""

FIRST_RETRY, LAST_RETRY = 0.1, 10
"""Between attempts to join: doubled each time. libtorrent does not tell that a node answered."""

CHECK_SECONDS = 60
"""How soon it is noticed that no node is left."""


@dataclass(eq=False)
class _Answer:
    """What has come of one get or put."""

    values: list[bytes] = field(default_factory=list)
    kept_by: int = 0
    seen: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)


class Dht:
    """A node of the DHT. `run` must run.

    Args:
        nodes: where to join it; nothing else is asked, but what these tell of.
    """

    def __init__(self, session: Session, nodes: tuple[Peer, ...]) -> None:
        self._session = session
        self._nodes = nodes
        self._joined = trio.Event()
        self._gets: dict[tuple[bytes, bytes], set[_Answer]] = {}
        self._puts: dict[tuple[bytes, bytes], set[_Answer]] = {}
        self._said = ""
        session.takers.append(self._take)

    async def put(self, private_key: Ed25519PrivateKey, salt: bytes, value: bytes) -> int:
        """Have nodes keep a value under a key and a salt, in place of what they had there.

        It is forgotten after two hours. Takes 60 s at most, and may be cancelled.

        Args:
            salt: at most 64 bytes.
            value: at most 990 bytes.

        Returns:
            How many nodes keep it; 0 where none was reached in time.

        Raises:
            UsageError: the salt or the value is too long.
        """
        if len(salt) > MAX_SALT or len(value) > MAX_VALUE:
            raise UsageError(
                tr(
                    "the DHT takes {max_value} bytes under {max_salt}, not more",
                    max_value=MAX_VALUE,
                    max_salt=MAX_SALT,
                )
            )
        public_key = private_key.public_key().public_bytes_raw()
        with _waiting(self._puts, (public_key, salt)) as answer:
            with trio.move_on_after(PUT_SECONDS):
                await self._joined.wait()
                expanded = _expanded(private_key)
                self._session.lt.dht_put_mutable_item(expanded, public_key, value, salt)
                await answer.done.wait()
        return answer.kept_by

    async def get(self, public_key: bytes, salt: bytes) -> list[bytes]:
        """Look for what is kept under a key and a salt.

        Takes 30 s at most, and may be cancelled. Whatever it is, the holder of the key signed it.

        Returns:
            The values that were seen, the last one put at the end; usually one or none.
        """
        with _waiting(self._gets, (public_key, salt)) as answer:
            with trio.move_on_after(GET_SECONDS):
                await self._joined.wait()
                self._session.lt.dht_get_mutable_item(public_key, salt)
                await answer.seen.wait()
                with trio.move_on_after(SETTLE_SECONDS):
                    await answer.done.wait()
        return answer.values

    async def run(self) -> None:
        """Join the DHT, and again whenever no node is left, for ever."""
        pause: float = FIRST_RETRY
        while True:
            if (await self._session.totals())["dht.dht_nodes"]:
                if not self._joined.is_set():
                    self._joined.set()
                    self._session.announce()
                pause = FIRST_RETRY
                await trio.sleep(CHECK_SECONDS)
                continue
            if self._joined.is_set():
                self._joined = trio.Event()
            for node in self._nodes:
                self._session.lt.add_dht_node(node)
            await trio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY)

    def _take(self, alert: lt.alert) -> None:
        match alert:
            case lt.dht_mutable_item_alert():
                value = alert.item
                for answer in self._gets.get((alert.key, alert.salt), ()):
                    if isinstance(value, bytes) and value and value not in answer.values:
                        answer.values.append(value)
                        answer.seen.set()
                    if alert.authoritative:
                        answer.seen.set()
                        answer.done.set()
            case lt.dht_put_alert():
                for answer in self._puts.get((alert.public_key, alert.salt), ()):
                    answer.kept_by = alert.num_success
                    answer.done.set()
            case lt.dht_get_peers_reply_alert():
                self._session.found(alert.info_hash.to_bytes(), alert.peers())
            case _ if alert.what() == "dht_error" and alert.message() != self._said:
                self._said = alert.message()  # once: it is tried again and again
                log.warning("a node of the DHT cannot be used: %s", self._said)


@contextmanager
def _waiting(
    all_waiting: dict[tuple[bytes, bytes], set[_Answer]], item: tuple[bytes, bytes]
) -> Iterator[_Answer]:
    """An answer that is told of an item's alerts while the context lasts."""
    answer = _Answer()
    all_waiting.setdefault(item, set()).add(answer)
    try:
        yield answer
    finally:
        all_waiting[item].discard(answer)
        if not all_waiting[item]:
            del all_waiting[item]


def _expanded(private_key: Ed25519PrivateKey) -> bytes:
    """What libtorrent signs by: the 64 bytes that Ed25519 makes of a seed (RFC 8032, 5.1.5)."""
    key = bytearray(hashlib.sha512(private_key.private_bytes_raw()).digest())
    key[0] &= 0xF8
    key[31] = key[31] & 0x3F | 0x40
    return bytes(key)
