#!/bin/bash
# aria2: "not interested" and "interested" in one packet cost ten seconds of choking
#
# Package, version: aria2 1.36.0-1 (Debian 12)
# What one would expect: a peer that says "not interested" and "interested" again is served on, or
#   is unchoked at once, as it is when the two messages come apart: the seeder has no other peer.
# What happens: aria2 handles both messages, then chokes because of the first. To the second it
#   reacted before that choke: "interested" leads to an unchoke only while aria2 is choking already.
#   So the peer is choked until the next round of choking, ten seconds later.
# Output seen:
#   apart: unchoked again within 5 s: True
#   in one packet: unchoked again within 5 s: False, within 30 s: True
# Why it matters: a client that reads on demand changes its interest all the time. Whether a read
#   takes 1 ms or 10 s depends on how the messages fall into packets.
# Source: BEP 3, "peer messages"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# The version that matters is pinned; of the libraries it needs any will do.
apt-get download -qq -o APT::Sandbox::User= aria2=1.36.0-1 libaria2-0=1.36.0-1 \
    libc-ares2 libssh2-1 libxml2 libsqlite3-0 || exit 2
for package in *.deb; do dpkg-deb -x "$package" root || exit 2; done
cat > peer.py <<'EOF'
import hashlib
import os
import select
import socket
import struct
import subprocess
import sys
import time

CHOKE, UNCHOKE, INTERESTED, NOT_INTERESTED, _, BITFIELD = range(6)
content = bytes(range(256)) * 256
pieces = hashlib.sha1(content).digest()
info = b"d6:lengthi%de4:name1:a12:piece lengthi%de6:pieces20:%be" % (
    len(content), len(content), pieces)  # fmt: skip
with open("a", "wb") as file:
    file.write(content)
with open("a.torrent", "wb") as file:
    file.write(b"d4:info%be" % info)


class Peer:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            b"\x13BitTorrent protocol" + bytes(8) + hashlib.sha1(info).digest() + b"-XX0001-abcdefghijkl"
        )
        self.buffer, self.greeted = b"", False

    def say(self, *kinds):
        self.socket.sendall(b"".join(struct.pack(">IB", 1, kind) for kind in kinds))

    def hears(self, wanted, seconds):
        """Whether a message comes in so many seconds."""
        end = time.monotonic() + seconds
        while True:
            while (kind := self.take()) is not False:
                if kind == wanted:
                    return True
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                return False
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("aria2 hung up")
            self.buffer += data

    def take(self):
        """The next message's kind, None for a keep-alive, False if it is not whole yet."""
        if not self.greeted:
            if len(self.buffer) < 68:
                return False
            self.buffer, self.greeted = self.buffer[68:], True
        length = struct.unpack(">I", self.buffer[:4])[0] if len(self.buffer) >= 4 else None
        if length is None or len(self.buffer) < 4 + length:
            return False
        message, self.buffer = self.buffer[4 : 4 + length], self.buffer[4 + length :]
        return message[0] if message else None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def connect(port):
    """Return a peer that is unchoked (aria2-first-message.sh tells why it waits first)."""
    for _ in range(150):
        try:
            peer = Peer(port)
            if peer.hears(BITFIELD, 30):
                peer.say(INTERESTED)
                peer.hears(UNCHOKE, 30)
                return peer
        except OSError:
            time.sleep(0.2)
    sys.exit(2)


port = free_port()
aria2 = subprocess.Popen(
    [
        "root/usr/bin/aria2c", "--no-conf", "-V", "-q", "--seed-ratio=0", "--enable-dht=false",
        "--enable-dht6=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false",
        "--interface=127.0.0.1", f"--listen-port={port}", "a.torrent",
    ],
    env=os.environ | {"LD_LIBRARY_PATH": "root/usr/lib/x86_64-linux-gnu", "HOME": os.getcwd()},
)  # fmt: skip
try:
    peer = connect(port)
    time.sleep(1)
    peer.say(NOT_INTERESTED)
    choked = peer.hears(CHOKE, 30)
    peer.say(INTERESTED)
    apart = peer.hears(UNCHOKE, 5)
    print(f"apart: unchoked again within 5 s: {apart}")
    # Right behind a round of choking, so that the next one is ten seconds away.
    late = False
    for _ in range(3):
        time.sleep(1)
        peer.say(NOT_INTERESTED, INTERESTED)
        choked_again = peer.hears(CHOKE, 10)
        at_once = peer.hears(UNCHOKE, 5)
        if not at_once:
            late = peer.hears(UNCHOKE, 25)
            break
    print(f"in one packet: unchoked again within 5 s: {at_once}, within 30 s: {late}")
finally:
    aria2.kill()
    aria2.wait()
sys.exit(
    (choked, apart, choked_again, at_once, late) != (True, True, True, False, True)
)
EOF
timeout -s INT 150 python3 peer.py
