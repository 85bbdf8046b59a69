#!/bin/bash
# aria2 hangs up on a peer whose first message is there together with its handshake
#
# Package, version: aria2 1.36.0-1 (Debian 12)
# What one would expect: a peer that connects may send its handshake and its first messages in one
#   go; TCP is a stream, and BEP 3 asks no peer to wait.
# What happens: aria2 answers with its handshake, finds more than the 68 bytes of a handshake in
#   its buffer, and hangs up a second later ("More than BtHandshakeMessage::MESSAGE_LENGTH bytes are
#   buffered"). It looks at new connections once a second, so a message that follows 0.3 s later
#   is as deadly. A peer that waits for aria2's handshake is served.
# Output seen:
#   handshake and "interested" in one packet: aria2 sent 68 bytes and hung up
#   "interested" once aria2's handshake was here: aria2 sent 79 bytes and unchoked
# Why it matters: a client that saves a round trip in this way works with other clients and finds
#   that aria2 never serves it; no message says why.
# Source: BEP 3, "peer protocol"; PeerConnection.cc, receiveHandshake
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
import socket
import struct
import subprocess
import sys
import time

HANDSHAKE_LENGTH = 68
INTERESTED = struct.pack(">IB", 1, 2)
UNCHOKE = struct.pack(">IB", 1, 1)
content = bytes(range(256)) * 256
info = b"d6:lengthi%de4:name1:a12:piece lengthi%de6:pieces20:%be" % (
    len(content), len(content), hashlib.sha1(content).digest())  # fmt: skip
with open("a", "wb") as file:
    file.write(content)
with open("a.torrent", "wb") as file:
    file.write(b"d4:info%be" % info)
handshake = (
    b"\x13BitTorrent protocol" + bytes(8) + hashlib.sha1(info).digest() + b"-XX0001-abcdefghijkl"
)


def connect():
    for _ in range(150):
        try:
            peer = socket.create_connection(("127.0.0.1", port), 5)
        except OSError:
            time.sleep(0.2)
            continue
        peer.settimeout(20)
        return peer
    sys.exit(2)


def talk(wait):
    """Return what aria2 sent, and whether it hung up before it unchoked."""
    received = b""
    with connect() as peer:
        if wait:
            peer.sendall(handshake)
            while len(received) < HANDSHAKE_LENGTH:
                received += peer.recv(HANDSHAKE_LENGTH - len(received)) or sys.exit(2)
            peer.sendall(INTERESTED)
        else:
            peer.sendall(handshake + INTERESTED)
        while not received[HANDSHAKE_LENGTH:].endswith(UNCHOKE):
            try:
                data = peer.recv(4096)
            except ConnectionError:
                data = b""
            if not data:
                return received, True
            received += data
    return received, False


with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
aria2 = subprocess.Popen(
    [
        "root/usr/bin/aria2c", "--no-conf", "-V", "-q", "--seed-ratio=0", "--enable-dht=false",
        "--enable-dht6=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false",
        "--interface=127.0.0.1", f"--listen-port={port}", "a.torrent",
    ],
    env=os.environ | {"LD_LIBRARY_PATH": "root/usr/lib/x86_64-linux-gnu", "HOME": os.getcwd()},
)  # fmt: skip
try:
    talk(wait=True)  # so that what follows meets an aria2 that has compared its file
    received, cut_off = talk(wait=False)
    end = "hung up" if cut_off else "unchoked"
    print(f'handshake and "interested" in one packet: aria2 sent {len(received)} bytes and {end}')
    answered, refused = talk(wait=True)
    end = "hung up" if refused else "unchoked"
    print(f'"interested" once aria2\'s handshake was here: aria2 sent {len(answered)} bytes and {end}')
finally:
    aria2.kill()
    aria2.wait()
sys.exit((len(received), cut_off, refused) != (HANDSHAKE_LENGTH, True, False))
EOF
timeout -s INT 120 python3 peer.py
