#!/bin/bash
# libtorrent: the Python binding's generate_buf() cannot return any real torrent
#
# Package, version: libtorrent 2.1.1 (Python binding)
# What one would expect: create_torrent.generate_buf() returns the bencoded torrent as bytes, as its
#   C++ counterpart does.
# What happens: the binding makes a `str` of it. SHA-1 hashes are no UTF-8, so it raises
#   UnicodeDecodeError. bencode(create_torrent.generate()) works.
# Output seen:
#   generate_buf: UnicodeDecodeError
#   bencode(generate()): 181 bytes
# Why it matters: the one method that makes a torrent file in one step works only for a torrent
#   whose hashes happen to be text, that is, never.
# Source: create_torrent.hpp, generate_buf
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check libtorrent==2.1.1 || exit 2
cd "$work"
timeout -s INT 120 "$work/venv/bin/python" - <<'EOF'
import pathlib
import sys

import libtorrent as lt

pathlib.Path("content").write_bytes(bytes(range(256)) * 200)
torrent = lt.create_torrent(lt.list_files("content"), 16384, lt.create_torrent.v1_only)
lt.set_piece_hashes(torrent, ".")
broken = False
try:
    print(f"generate_buf: {type(torrent.generate_buf()).__name__}")
except UnicodeDecodeError:
    print("generate_buf: UnicodeDecodeError")
    broken = True
print(f"bencode(generate()): {len(lt.bencode(torrent.generate()))} bytes")
sys.exit(not broken)
EOF
