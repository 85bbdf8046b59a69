#!/bin/bash
# transmission answers peers on 127.0.0.1, but never connects to one
#
# Package, version: transmission-daemon 3.00-2.1+deb12u1 (Debian 12)
# What one would expect: a tracker names a peer at 127.0.0.1, and transmission connects to it.
# What happens: it logs "Got 1 peers from tracker" and drops it without a word: addresses of
#   loopback count as invalid for peers. A peer that calls from 127.0.0.1 itself is answered.
# Output seen:
#   the tracker named a peer: True, transmission connected to it in 20 s: False
#   the same peer calls transmission: answered with a handshake True
# Why it matters: tests and tunnels on one host work if the other side calls first, and look as if
#   the tracker had failed if transmission has to.
# Source: libtransmission/net.c, tr_address_is_valid_for_peers
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# The version that matters is pinned; of the libraries it needs any will do.
apt-get download -qq -o APT::Sandbox::User= transmission-daemon=3.00-2.1+deb12u1 \
    libcurl4 libevent-2.1-7 libminiupnpc17 libnatpmp1 || exit 2
for package in *.deb; do dpkg-deb -x "$package" root || exit 2; done
cat > peer.py <<'EOF'
import hashlib
import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading

content = bytes(range(256)) * 64
info = b"d6:lengthi%de4:name1:a12:piece lengthi%de6:pieces20:%be" % (
    len(content), len(content), hashlib.sha1(content).digest())  # fmt: skip
peer = socket.create_server(("127.0.0.1", 0))
peer.settimeout(20)
announced = threading.Event()


class Tracker(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        address = socket.inet_aton("127.0.0.1") + struct.pack(">H", peer.getsockname()[1])
        answer = b"d8:intervali60e5:peers6:%be" % address
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        if self.path.startswith("/announce"):
            announced.set()


tracker = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tracker)
threading.Thread(target=tracker.serve_forever, daemon=True).start()
url = b"http://127.0.0.1:%d/announce" % tracker.server_port
with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
os.makedirs("conf")
os.makedirs("watched")
with open("watched/a.torrent", "wb") as file:
    file.write(b"d8:announce%d:%b4:info%be" % (len(url), url, info))
with open("conf/settings.json", "w") as file:
    json.dump(
        {
            "bind-address-ipv4": "127.0.0.1",
            "bind-address-ipv6": "::1",
            "dht-enabled": False,
            "download-dir": os.getcwd(),
            "encryption": 0,
            "lpd-enabled": False,
            "peer-port": port,
            "pex-enabled": False,
            "port-forwarding-enabled": False,
            "rpc-enabled": False,
            "utp-enabled": False,
            "watch-dir": os.path.abspath("watched"),
            "watch-dir-enabled": True,
        },
        file,
    )
log = open("log", "w")
daemon = subprocess.Popen(
    ["root/usr/bin/transmission-daemon", "-f", "-g", "conf"],
    env=os.environ | {"LD_LIBRARY_PATH": "root/usr/lib/x86_64-linux-gnu", "HOME": os.getcwd()},
    stdout=log,
    stderr=log,
)
try:
    named = announced.wait(60)
    try:
        peer.accept()
        connected = True
    except TimeoutError:
        connected = False
    print(f"the tracker named a peer: {named}, transmission connected to it in 20 s: {connected}")
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 20) as calling:
        calling.settimeout(20)
        calling.sendall(
            b"\x13BitTorrent protocol" + bytes(8) + hashlib.sha1(info).digest() + b"-XX0001-abcdefghijkl"
        )
        while len(answer) < 68 and (data := calling.recv(68)):
            answer += data
    answered = answer.startswith(b"\x13BitTorrent protocol")
    print(f"the same peer calls transmission: answered with a handshake {answered}")
finally:
    daemon.kill()
    daemon.wait()
sys.exit(2 if not named else (connected, answered) != (False, True))
EOF
timeout -s INT 150 python3 peer.py
