#!/bin/bash
# libtorrent never sets TCP_NODELAY: an isolated piece takes 44 ms over loopback
#
# Package, version: libtorrent 2.1.1
# What one would expect: of two peers on one host, one piece of 64 KiB takes about a millisecond; a
#   program that sends small requests and waits for answers sets TCP_NODELAY, or has a setting.
# What happens: the option is off on every connection, no setting turns it on, and each isolated
#   piece waits for the other side's delayed acknowledgement (40 ms). Set from outside, through the
#   descriptors in /proc/self/fd, it makes the same pieces about 70 times as fast.
# Output seen (20 pieces one after another, medians):
#   TCP_NODELAY on the connection: [0, 0]; settings of that name: []
#   as it is: 44 ms
#   set from outside: 1 ms
# Why it matters: reading on demand is bound by this delay, not by the link; bulk downloads hide it.
# Source: tcp(7), TCP_NODELAY; RFC 9293, section 3.7.4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 150 "$work/venv/bin/python" - <<'EOF'
import os
import random
import socket
import statistics
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



def connections():
    """This process's TCP connections over loopback: both ends, as both sessions live here."""
    for name in os.listdir("/proc/self/fd"):
        try:
            mine = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with mine:
            try:
                mine.getpeername()
            except OSError:
                continue
            if mine.family == socket.AF_INET and mine.type == socket.SOCK_STREAM:
                yield mine


def median(first):
    times = []
    for piece in range(first, first + 20):
        begin = time.perf_counter()
        handle.piece_priority(piece, 7)
        if until(lambda: handle.have_piece(piece), 3):
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


near = {"close_redundant_connections": False}
torrent = make(64, 65536)
seed_session, seed = join(torrent, ".", lt.torrent_flags.seed_mode, **near)
until(lambda: seed.status().is_seeding, 20)
session, handle = join(torrent, "out", wanted=False, **near)
handle.connect_peer(("127.0.0.1", seed_session.listen_port()))
# Both ends of one connection, that is there to stay.
until(lambda: handle.status().num_peers == 1, 20)
time.sleep(2)
until(lambda: len(list(connections())) == 2, 30)
options = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in connections()]
names = [name for name in lt.default_settings() if "nodelay" in name.replace("_", "")]
print(f"TCP_NODELAY on the connection: {options}; settings of that name: {names}")
before = median(0)
print(f"as it is: {before * 1000:.0f} ms")
for each in connections():
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
after = median(20)
print(f"set from outside: {after * 1000:.0f} ms")
sys.exit(not (options == [0, 0] and not names and before > 0.03 and after < before / 2))
EOF
