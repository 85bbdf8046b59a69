#!/bin/bash
# libtorrent: good bytes from a web seed fail their hash in a v2-only torrent
#
# Package, version: libtorrent 2.1.1
# What one would expect: a torrent of version 2 with files of 100,000 and 50,000 bytes comes from a
#   web seed with one request for each file, as one of version 1 does.
# What happens: the second file is fetched whole, and each of its pieces fails its hash although the
#   server sent the right bytes. Then they are asked for once more, piece by piece, and are right.
#   Version 1 has no failure, nor has version 2 if the first file is a multiple of the piece length.
# Output seen:
#   v1, 100000 and 50000 bytes: requests 2, failed pieces 0, whole True
#   v2, 98304 and 50000 bytes: requests 2, failed pieces 0, whole True
#   v2, 100000 and 50000 bytes: requests 6, failed pieces 4, whole True
# Why it matters: every file but the first is downloaded twice, and an honest server looks as if it
#   sent wrong data. Files of version 2 begin at a piece; the bytes between are on no server.
# Source: BEP 52, "files are piece-aligned"; BEP 19
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 150 "$work/venv/bin/python" - <<'EOF'
import http.server
import pathlib
import random
import re
import sys
import threading
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


def serve(directory):
    """Serve a directory with byte ranges; return its URL and the list of requests."""
    requests = []

    class Server(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            requests.append((self.path, self.headers["Range"]))
            try:
                content = pathlib.Path(directory, self.path[1:]).read_bytes()
            except OSError:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/", requests


def make(top, flags):
    made = lt.create_torrent(lt.list_files(top), 16384, flags)
    lt.set_piece_hashes(made, str(pathlib.Path(top).parent))
    return lt.bencode(made.generate())


def fetch(torrent, url, directory, seconds):
    """Return whether all came, and the alerts."""
    session = lt.session(QUIET | {"urlseed_wait_retry": 1, "ssrf_mitigation": False})
    parameters = lt.load_torrent_buffer(torrent)
    parameters.save_path, parameters.url_seeds = directory, [url]
    handle = session.add_torrent(parameters)
    alerts, end = [], time.monotonic() + seconds
    while not handle.status().is_seeding and time.monotonic() < end:
        session.wait_for_alert(200)
        alerts += [(type(each), each.message()) for each in session.pop_alerts()]
    alerts += [(type(each), each.message()) for each in session.pop_alerts()]
    return handle.status().is_seeding, alerts



def run(name, first, flags):
    top = pathlib.Path(f"source-{name}-{first}/top")
    top.mkdir(parents=True)
    noise = random.Random(1)
    for file, size in (("a", first), ("b", 50_000)):
        (top / file).write_bytes(noise.randbytes(size))
    url, requests = serve(top.parent)
    whole, alerts = fetch(make(str(top), flags), url, f"out-{name}-{first}", 30)
    failed = sum(kind is lt.hash_failed_alert for kind, _ in alerts)
    print(f"{name}, {first} and 50000 bytes: requests {len(requests)},"
          f" failed pieces {failed}, whole {whole}")
    return failed, whole


v1, v2 = lt.create_torrent.v1_only, lt.create_torrent.v2_only
seen = run("v1", 100_000, v1), run("v2", 98_304, v2), run("v2", 100_000, v2)
sys.exit(not (seen[:2] == ((0, True), (0, True)) and seen[2][0] > 0 and seen[2][1]))
EOF
