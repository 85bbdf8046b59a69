#!/bin/bash
# libtorrent: a torrent that wants nothing for a moment forgets its seeds for good
#
# Package, version: libtorrent 2.1.1
# What one would expect: a torrent whose pieces all have priority 0 may hang up on a seed. Once
#   pieces are wanted, it connects to that seed again, or does so when told its address.
# What happens: it hangs up ("upload to upload connection") and marks the peer as a seed, which
#   finished torrents skip. When pieces are wanted again, the mark stays: the list of peers holds
#   one, none of them a candidate. Neither waiting (min_reconnect_time is 1 s here) nor
#   connect_peer() with the same address brings a connection. A torrent that wanted one piece from
#   the start gets everything.
# Output seen:
#   nothing wanted at first: hung up True; all wanted: known peers 1, candidates 0
#   20 s later: whole False; named again by connect_peer: whole False
#   one piece wanted at first, then all: whole True
# Why it matters: reading a torrent on demand is "all at priority 0, raise what is read". With the
#   default settings it fails for ever if nothing is read when the peers meet.
# Source: peer_list.cpp, is_connect_candidate and recalculate_connect_candidates
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 150 "$work/venv/bin/python" - <<'EOF'
import random
import sys
import time

import libtorrent as lt

QUIET = {
    "listen_interfaces": "127.0.0.1:0",
    "outgoing_interfaces": "127.0.0.1",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_bootstrap_nodes": "",
    "webtorrent_stun_server": "",
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "alert_mask": lt.alert.category_t.all_categories,
}


def make(pieces, piece_length):
    with open("content", "wb") as file:
        file.write(random.Random(1).randbytes(pieces * piece_length))
    made = lt.create_torrent(lt.list_files("content"), piece_length, lt.create_torrent.v1_only)
    lt.set_piece_hashes(made, ".")
    return lt.bencode(made.generate())


def join(torrent, directory, flags=None, wanted=True, **settings):
    session = lt.session(QUIET | settings)
    parameters = lt.load_torrent_buffer(torrent)
    parameters.save_path = directory
    if flags is not None:
        parameters.flags |= flags
    if not wanted:
        parameters.piece_priorities = [0] * parameters.ti.num_pieces()
    return session, session.add_torrent(parameters)


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


torrent = make(64, 16384)
seed_session, seed = join(torrent, ".", lt.torrent_flags.seed_mode)
until(lambda: seed.status().is_seeding, 20)
address = ("127.0.0.1", seed_session.listen_port())

session, handle = join(torrent, "idle", wanted=False, min_reconnect_time=1)
until(lambda: handle.status().state == lt.torrent_status.finished, 20)
handle.connect_peer(address)
kinds = set()


def hung_up():
    kinds.update(type(alert) for alert in session.pop_alerts())
    return lt.peer_disconnected_alert in kinds


gone = until(hung_up, 20)
handle.prioritize_pieces([4] * 64)
time.sleep(3)
status = handle.status()
candidates = status.connect_candidates
print(f"nothing wanted at first: hung up {gone}; all wanted: known peers {status.list_peers},"
      f" candidates {candidates}")
waited = until(lambda: handle.status().is_seeding, 20)
handle.connect_peer(address)
named = until(lambda: handle.status().is_seeding, 10)
print(f"20 s later: whole {waited}; named again by connect_peer: whole {named}")

other_session, other = join(torrent, "reading", wanted=False, min_reconnect_time=1)
other.piece_priority(0, 4)
until(lambda: other.status().state == lt.torrent_status.downloading, 20)
other.connect_peer(address)
until(lambda: other.status().num_peers == 1, 20)
other.prioritize_pieces([4] * 64)
whole = until(lambda: other.status().is_seeding, 20)
print(f"one piece wanted at first, then all: whole {whole}")
sys.exit((gone, candidates, waited, named, whole) != (True, 0, False, False, True))
EOF
