#!/bin/bash
# libtorrent: set_alert_fd() with an eventfd never wakes the program
#
# Package, version: libtorrent 2.1.1 (Python binding)
# What one would expect: set_alert_fd(fd) writes to `fd` when alerts wait; an eventfd is what Linux
#   has for such a wake-up.
# What happens: it writes one byte. write(2) to an eventfd takes exactly 8 bytes and fails with
#   EINVAL otherwise, and the binding ignores the error. The alerts are there, the descriptor is
#   never readable. A pipe or a socket pair works.
# Output seen:
#   eventfd: never readable, alerts waiting: True
#   pipe: readable, alerts waiting: True
# Why it matters: an event loop that waits on it sleeps for ever, without an error anywhere.
# Source: eventfd(2), "write"; session_handle.hpp, set_alert_notify
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 120 "$work/venv/bin/python" - <<'EOF'
import os
import select
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

session = lt.session(QUIET)


def wakes(name, reader, writer):
    session.set_alert_fd(-1)
    session.pop_alerts()
    session.set_alert_fd(writer)
    session.post_session_stats()
    alerts = session.wait_for_alert(20_000) is not None
    readable = bool(select.select([reader], [], [], 3)[0])
    print(f"{name}: {'readable' if readable else 'never readable'}, alerts waiting: {alerts}")
    return alerts, readable


event = os.eventfd(0, os.EFD_NONBLOCK)
by_event = wakes("eventfd", event, event)
by_pipe = wakes("pipe", *os.pipe2(os.O_NONBLOCK))
session.set_alert_fd(-1)
sys.exit((by_event, by_pipe) != ((True, False), (True, True)))
EOF
