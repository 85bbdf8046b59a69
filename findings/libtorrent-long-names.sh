#!/bin/bash
# libtorrent hashes files with names of more than 240 bytes, and then cannot find them
#
# Package, version: libtorrent 2.1.1
# What one would expect: a directory from which create_torrent made a torrent can be seeded with it.
#   File names of Linux have up to 255 bytes.
# What happens: create_torrent and set_piece_hashes take the names as they are. A client that
#   loads the torrent, its maker too, sees names cut to 240 bytes. No files are found under those,
#   so nothing is seeded; no alert reports an error. A second file that becomes equal by the cut
#   gets ".1" at its end.
# Output seen:
#   names of 240 bytes: loaded as [240, 240], seeding True
#   names of 241 bytes: loaded as [240, 240], seeding False, error alerts 0
# Why it matters: one long name, and the torrent is published but its own seeder has 0 %.
# Source: torrent_info.cpp, sanitize_append_path_element
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 120 "$work/venv/bin/python" - <<'EOF'
import os
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


def seeds(length):
    """Make a torrent of two files, load it, and tell whether it is found to be whole."""
    top = f"of-{length}"
    os.mkdir(top)
    for last in "12":
        with open(f"{top}/{'n' * (length - 1)}{last}", "wb") as file:
            file.write(last.encode() * 20_000)
    made = lt.create_torrent(lt.list_files(top), 16384, lt.create_torrent.v1_only)
    lt.set_piece_hashes(made, ".")
    torrent = lt.load_torrent_buffer(lt.bencode(made.generate()))
    files = torrent.ti.layout()
    names = [len(os.path.basename(files.file_path(n))) for n in range(files.num_files())]
    torrent.save_path = "."
    session = lt.session(QUIET)
    handle = session.add_torrent(torrent)
    checked, errors, until = False, 0, time.monotonic() + 20
    while not checked and time.monotonic() < until:
        session.wait_for_alert(500)
        for alert in session.pop_alerts():
            checked |= isinstance(alert, lt.torrent_checked_alert)
            errors += "error" in type(alert).__name__
    seeding = handle.status().is_seeding
    told = "" if seeding else f", error alerts {errors}"
    print(f"names of {length} bytes: loaded as {names}, seeding {seeding}{told}")
    return checked, names, seeding, errors


sys.exit(
    (seeds(240), seeds(241))
    != ((True, [240, 240], True, 0), (True, [240, 240], False, 0))
)
EOF
