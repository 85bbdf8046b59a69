#!/bin/bash
# libtorrent: a DHT item signed with a 64-byte Ed25519 key of other libraries is stored nowhere
#
# Package, version: libtorrent 2.1.1 (keys by cryptography 50.0.2)
# What one would expect: dht_put_mutable_item() wants a private key of 64 bytes. The Ed25519 secret
#   key of 64 bytes that NaCl, Go and OpenSSH keep is the 32-byte seed and the public key.
# What happens: that key has the right length, is taken, and signs wrongly: libtorrent means the
#   SHA-512 of the seed, with its bits set as RFC 8032 says. The put still "completes"; each node
#   has refused the item, and nothing raises. The seed alone is refused by its length.
# Output seen:
#   SHA-512 of the seed: put complete, stored by 4 nodes, found by another node True
#   seed and public key: put complete, stored by 0 nodes, found by another node False
#   seed: ValueError: private key has wrong length, should be 64
# Why it matters: the only sign is a count in an alert that says "complete", and the public key is
#   the same for both forms.
# Source: RFC 8032, section 5.1.5; BEP 44, "Signature verification" and its test vectors
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    libtorrent==2.1.1 cryptography==50.0.2 || exit 2
cd "$work"
timeout -s INT 150 "$work/venv/bin/python" - <<'EOF'
import hashlib
import sys
import time

import libtorrent as lt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NODES = 4
SETTINGS = {
    "listen_interfaces": "127.0.0.1:0",
    "outgoing_interfaces": "127.0.0.1",
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_bootstrap_nodes": "",
    "webtorrent_stun_server": "",
    # All nodes are on one address.
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "alert_mask": lt.alert.category_t.all_categories,
}


def wait_for(session, kind, seconds, accept=lambda alert: True):
    """Return what `accept` makes of the first alert of a kind for which it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        session.wait_for_alert(500)
        for alert in session.pop_alerts():
            if isinstance(alert, kind) and (found := accept(alert)):
                return found
    return None


def expanded(seed):
    key = bytearray(hashlib.sha512(seed).digest())
    key[0] &= 248
    key[31] = key[31] & 63 | 64
    return bytes(key)


def publish(name, salt, private, public):
    """Return how many nodes stored an item, and whether another node finds it."""
    nodes[0].pop_alerts()
    try:
        nodes[0].dht_put_mutable_item(private, public, b"value", salt)
    except ValueError as err:
        print(f"{name}: ValueError: {err}")
        return "refused"
    done = wait_for(nodes[0], lt.dht_put_alert, 40, lambda alert: (alert.num_success,))
    nodes[2].pop_alerts()
    nodes[2].dht_get_mutable_item(public, salt)
    found = bool(
        wait_for(nodes[2], lt.dht_mutable_item_alert, 10, lambda alert: b"value" in alert.item)
    )
    stored = done[0] if done else "?"
    print(f"{name}: put {'complete' if done else 'not complete'}, stored by {stored} nodes,"
          f" found by another node {found}")
    return stored, found


nodes = [lt.session(SETTINGS) for _ in range(NODES)]
for node in nodes:
    for other in nodes:
        if other is not node:
            node.add_dht_node(("127.0.0.1", other.listen_port()))
time.sleep(5)
seed = bytes(range(32))
public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
right = publish("SHA-512 of the seed", b"1", expanded(seed), public)
usual = publish("seed and public key", b"2", seed + public, public)
alone = publish("seed", b"3", seed, public)
works = isinstance(right, tuple) and right[0] not in (0, "?") and right[1]
sys.exit(2 if not works else (usual, alone) != ((0, False), "refused"))
EOF
