#!/bin/bash
# libtorrent gives each connection of one torrent another peer id
#
# Package, version: libtorrent 2.1.1
# What one would expect: a client's peer id names it: chosen once when a download starts, told to
#   the tracker, the same in each handshake (BEP 3).
# What happens: two connections of one torrent, a second apart, carry different peer ids. Only the
#   client's prefix is the same.
# Output seen:
#   same prefix: True (-LT2110-), same id: False
# Why it matters: peer ids cannot tell that two connections come from one client, nor which of a
#   tracker's peers has called; programs that count or ban by peer id count connections.
# Source: BEP 3, "trackers" and "peer protocol"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 150 "$work/venv/bin/python" - <<'EOF'
import socket
import sys

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

session = lt.session(
    QUIET
    | {
        "out_enc_policy": lt.enc_policy.disabled,
        "allow_multiple_connections_per_ip": True,
    }
)
parameters = lt.add_torrent_params()
parameters.info_hashes = lt.info_hash_t(lt.sha1_hash(b"any torrent at all.."))
parameters.save_path = "."
handle = session.add_torrent(parameters)
ids = []
for _ in range(2):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        handle.connect_peer(listener.getsockname())
        connection, _ = listener.accept()
        connection.settimeout(30)
        handshake = b""
        while len(handshake) < 68:
            handshake += connection.recv(68 - len(handshake))
        assert handshake.startswith(b"\x13BitTorrent protocol")
        ids.append(handshake[48:68])
prefix = ids[0][:8] == ids[1][:8]
print(f"same prefix: {prefix} ({ids[0][:8].decode()}), same id: {ids[0] == ids[1]}")
sys.exit(not (prefix and ids[0] != ids[1]))
EOF
