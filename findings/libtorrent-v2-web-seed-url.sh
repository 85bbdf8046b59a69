#!/bin/bash
# libtorrent: a v2-only torrent of one file asks its web seed for an address that is not there
#
# Package, version: libtorrent 2.1.1
# What one would expect: one file and a web seed "http://host/content" give "GET /content", in a
#   torrent of version 2 as in one of version 1 (BEP 19).
# What happens: for version 1, and for a hybrid, yes. For version 2 alone it asks for
#   "/content/content", gets 404 and gives up, with the message "Success".
# Output seen:
#   v1: GET ['/content'], whole True
#   hybrid: GET ['/content'], whole True
#   v2: GET ['/content/content'], whole False
# Why it matters: the same call with another flag makes a torrent that its web seed cannot serve.
# Source: BEP 19; BEP 52
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 150 "$work/venv/bin/python" - <<'EOF'
import http.server
import pathlib
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


pathlib.Path("source").mkdir()
pathlib.Path("source/content").write_bytes(bytes(range(256)) * 400)
seen = {}
for name, flags, seconds in (
    ("v1", lt.create_torrent.v1_only, 30),
    ("hybrid", 0, 30),
    ("v2", lt.create_torrent.v2_only, 10),
):
    url, requests = serve("source")
    whole, _ = fetch(make("source/content", flags), url + "content", name, seconds)
    seen[name] = sorted({path for path, _ in requests}), whole
    print(f"{name}: GET {seen[name][0]}, whole {whole}")
right = (["/content"], True)
sys.exit(seen != {"v1": right, "hybrid": right, "v2": (["/content/content"], False)})
EOF
