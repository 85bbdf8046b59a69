"""Decides which of libtorrent's bans for wrong pieces were deserved.

libtorrent bans a peer that sent all of a wrong piece; but also one that had a part in four of them
(torrent.cpp, `penalize_peers`): beside a liar, every honest peer. Its alert does not tell which.
Its smart_ban plugin, without an alert, bans the first peer that it knows at the culprit's host
(smart_ban.cpp, `on_read_failed_block`): on 127.0.0.1 or behind one NAT, another client.
"""

from __future__ import annotations

from p2pcloopd.engine.disk.record import Peer
from p2pcloopd.engine.fetch.peers import Peers


class Blame:
    """Tells `peers` which bans of libtorrent are proven, and which are not.

    For one stay in one swarm. Peers are known by their peer ids: a ban names the port at which a
    peer listens, a block the one from which it came.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._senders: dict[int, set[bytes]] = {}
        self._accused: dict[bytes, Peer] = {}

    def sent(self, piece: int, peer_id: bytes) -> None:
        """Note that a peer sent a block of a piece."""
        self._senders.setdefault(piece, set()).add(peer_id)

    def passed(self, piece: int) -> None:
        """Note that a piece is right."""
        self._senders.pop(piece, None)

    def banned(self, peer_id: bytes, address: Peer) -> None:
        """Note that libtorrent banned a peer; `failed` for the piece in question follows."""
        self._accused[peer_id] = address

    def failed(self, piece: int) -> None:
        """Judge those who are banned and had a part in a wrong piece."""
        senders = self._senders.pop(piece, set())
        judge = self._peers.on_banned if len(senders) == 1 else self._peers.on_unproven
        for peer_id in senders & self._accused.keys():
            judge(self._accused[peer_id])

    def banned_by_host(self, address: Peer) -> None:
        """Judge a ban by smart_ban: right where no other client of that host sent anything."""
        if any(peer[0] == address[0] and peer != address for peer in self._peers.received):
            self._peers.on_unproven(address)
        else:
            self._peers.on_banned(address)
