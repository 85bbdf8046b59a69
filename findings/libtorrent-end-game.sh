#!/bin/bash
# libtorrent: strict_end_game_mode depends on the priority of pieces that are here already
#
# Package, version: libtorrent 2.1.1
# What one would expect: with strict_end_game_mode (the default), a block is asked of a second peer
#   only once every piece that is left has been asked for. With 34 of 64 pieces at priority 0 and
#   one piece wanted at a time, either never or always.
# What happens: it depends on pieces that are here. Those with priority 0 count as "wanted and
#   absent", which keeps the end-game off; those with a priority do not. If each piece keeps its
#   priority, more than half of the blocks arrive twice. If the program sets each piece to priority 0
#   once it is here, hardly any does.
# Output seen (30 pieces of 64 KiB, one after another, from three seeds of 400 kB/s each):
#   priority kept: 1081344 redundant bytes
#   priority 0 once here: 65536 redundant bytes
# Why it matters: a reader on demand downloads half as much again, and the cure is to change the
#   priority of what no longer needs any.
# Source: request_blocks.cpp; piece_picker.hpp, num_want_left
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



def redundant(lower):
    near = {"close_redundant_connections": False, "allow_multiple_connections_per_ip": True}
    seeds = [
        join(torrent, ".", lt.torrent_flags.seed_mode, upload_rate_limit=400_000, **near)
        for _ in range(3)
    ]
    session, handle = join(torrent, f"lower-{lower}", wanted=False, **near)
    for other, seed in seeds:
        until(lambda seed=seed: seed.status().is_seeding, 20)
        handle.connect_peer(("127.0.0.1", other.listen_port()))
    until(lambda: handle.status().num_peers == 3, 20)
    for piece in range(30):
        handle.piece_priority(piece, 7)
        until(lambda piece=piece: handle.have_piece(piece), 20)
        if lower:
            handle.piece_priority(piece, 0)
    return handle.status().total_redundant_bytes


torrent = make(64, 65536)
kept = redundant(lower=False)
print(f"priority kept: {kept} redundant bytes")
lowered = redundant(lower=True)
print(f"priority 0 once here: {lowered} redundant bytes")
sys.exit(not (kept > 6 * 65536 and lowered < kept / 2))
EOF
