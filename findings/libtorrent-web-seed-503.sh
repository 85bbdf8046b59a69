#!/bin/bash
# libtorrent: one "503, try again" from a web seed, and it is never asked again
#
# Package, version: libtorrent 2.1.1
# What one would expect: after "503 Service Unavailable" with "Retry-After: 1" the web seed is asked
#   again, at the latest after `urlseed_wait_retry` seconds (set to 1 here).
# What happens: it is never asked again, though url_seeds() still lists it. The alert calls the
#   failure "Success". Removing the address and adding it again helps at once.
# Output seen:
#   first answer: 503 with Retry-After: 1
#   alert: ... url seed (http://127.0.0.1:PORT/content) failed: Success
#   20 s later: requests 1, still listed True
#   removed and added: whole True
# Why it matters: a mirror that is busy for a second is lost to every client that saw it then.
# Source: settings_pack.hpp, urlseed_wait_retry; RFC 9110, section 10.2.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 120 "$work/venv/bin/python" - <<'EOF'
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

CONTENT = bytes(range(256)) * 800
pathlib.Path("source").mkdir()
pathlib.Path("source/content").write_bytes(CONTENT)
made = lt.create_torrent(lt.list_files("source/content"), 16384, lt.create_torrent.v1_only)
lt.set_piece_hashes(made, "source")
requests = []


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        requests.append(self.path)
        if len(requests) == 1:
            self.send_response(503)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        part = CONTENT[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/content"
session = lt.session(QUIET | {"urlseed_wait_retry": 1, "ssrf_mitigation": False})
torrent = lt.load_torrent_buffer(lt.bencode(made.generate()))
torrent.save_path, torrent.url_seeds = ".", [url]
handle = session.add_torrent(torrent)
message, until = "", time.monotonic() + 30
while not message and time.monotonic() < until:
    session.wait_for_alert(500)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.url_seed_alert):
            message = alert.message()
print(f"first answer: 503 with Retry-After: 1\nalert: {message}")
time.sleep(20)
asked, listed = len(requests), url in handle.url_seeds()
print(f"20 s later: requests {asked}, still listed {listed}")
handle.remove_url_seed(url)
time.sleep(1)
handle.add_url_seed(url)
until = time.monotonic() + 30
while not handle.status().is_seeding and time.monotonic() < until:
    time.sleep(0.1)
whole = handle.status().is_seeding
print(f"removed and added: whole {whole}")
sys.exit((asked, listed, whole, message.endswith("Success")) != (1, True, True, True))
EOF
