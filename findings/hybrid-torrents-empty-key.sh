#!/bin/bash
# Hybrid torrents: aria2 computes another info hash, transmission 3.00 refuses the file
#
# Package, version: aria2 1.36.0-1, transmission-cli 3.00-2.1 (Debian 12), libtorrent 2.1.1
# What one would expect: a hybrid torrent (BEP 52) is a torrent of version 1 with further keys, so
#   clients of version 1 read it as one and find the same info hash.
# What happens: the file tree of version 2 has a key of no length for each file. aria2 drops such
#   entries when it reads the dictionary, and computes the info hash of what is left; transmission
#   calls the file broken. The empty key alone does it: the same torrent of version 1 with one
#   unknown entry {"": "v"} gives the same two results. Other unknown entries do no harm.
# Output seen:
#   hybrid by libtorrent: aria2 has another info hash, transmission: Error parsing .torrent file
#   unknown entry with an empty key: aria2 has another info hash, transmission: Error parsing .torrent file
#   unknown entry with another key: aria2 has the info hash, transmission has the info hash
# Why it matters: a hybrid is published for the sake of old clients. aria2 shows the right files and
#   then finds no peer, as no other client is in that swarm.
# Source: BEP 52, "file tree": "a zero-length key"; BEP 3: unknown keys are part of the info hash
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
# The versions that matter are pinned; of the libraries they need any will do.
apt-get download -qq -o APT::Sandbox::User= aria2=1.36.0-1 libaria2-0=1.36.0-1 \
    transmission-cli=3.00-2.1+deb12u1 libc-ares2 libssh2-1 libxml2 libsqlite3-0 libcurl4 \
    libevent-2.1-7 libminiupnpc17 libnatpmp1 || exit 2
for package in *.deb; do dpkg-deb -x "$package" root || exit 2; done
cat > show.py <<'EOF'
import hashlib
import os
import re
import subprocess
import sys

import libtorrent as lt


def bencode(value):
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%b" % (len(value), value)
        case dict():
            return b"d" + b"".join(bencode(k) + bencode(value[k]) for k in sorted(value)) + b"e"


def run(*command):
    libraries = "root/usr/lib/x86_64-linux-gnu"
    return subprocess.run(
        command,
        env=os.environ | {"LD_LIBRARY_PATH": libraries, "HOME": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    ).stdout


def compare(name, torrent, info_hash):
    with open("a.torrent", "wb") as file:
        file.write(torrent)
    said = run("root/usr/bin/aria2c", "--no-conf", "-S", "a.torrent")
    found = re.search(r"Info Hash: (\w+)", said)
    aria2 = "the" if found and found[1] == info_hash else "another" if found else "no"
    said = run("root/usr/bin/transmission-show", "a.torrent")
    refused = re.search(r"Error parsing .torrent file", said)
    transmission = ": " + refused[0] if refused else " has another info hash"
    if info_hash in said:
        transmission = " has the info hash"
    print(f"{name}: aria2 has {aria2} info hash, transmission{transmission}")
    return aria2, bool(refused)


with open("content", "wb") as file:
    file.write(bytes(range(256)) * 200)
made = lt.create_torrent(lt.list_files("content"), 16384)
lt.set_piece_hashes(made, ".")
hybrid = lt.bencode(made.generate())
seen = [
    compare("hybrid by libtorrent", hybrid, str(lt.torrent_info(hybrid).info_hashes().v1))
]
info = {b"name": b"a", b"piece length": 16384, b"length": 3, b"pieces": hashlib.sha1(b"abc").digest()}
for name, entry in (("an empty", {b"": b"v"}), ("another", {b"k": b"v"})):
    extended = info | {b"x": entry}
    info_hash = hashlib.sha1(bencode(extended)).hexdigest()
    torrent = bencode({b"announce": b"http://127.0.0.1:1/announce", b"info": extended})
    seen.append(compare(f"unknown entry with {name} key", torrent, info_hash))
sys.exit(seen != [("another", True), ("another", True), ("the", False)])
EOF
venv/bin/python show.py
