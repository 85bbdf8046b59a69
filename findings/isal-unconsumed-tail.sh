#!/bin/bash
# isal_zlib loses the end of a stream in the loop that zlib's documentation describes
#
# Package, version: isal 1.9.1 (Python binding of ISA-L)
# What one would expect: isal_zlib is a drop-in replacement for zlib. A loop that feeds
#   `unconsumed_tail` back to `decompress(data, max_length)` until it is empty returns all data.
# What happens: isal takes all input into a buffer of its own, so `unconsumed_tail` is empty while
#   output is still waiting. The loop ends early, raises nothing, and the end of the data is missing.
#   `eof` is the only sign. More output comes only if decompress() is called with empty input.
# Output seen:
#   zlib: 2288890 of 2288890 bytes, eof True
#   isal.isal_zlib: 2232320 of 2288890 bytes, eof False
#   isal.isal_zlib, asked again with b"" until eof: 2288890 of 2288890 bytes
# Why it matters: the same five lines are right with zlib and cut the data short with isal.
# Source: Python documentation, zlib.Decompress.unconsumed_tail
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check isal==1.9.1 || exit 2
"$work/venv/bin/python" - <<'EOF'
import sys
import zlib

from isal import isal_zlib

DATA = b"".join(b"line %d\n" % number for number in range(200_000))
PACKED = zlib.compress(DATA)


def by_tail(module):
    stream, out, left = module.decompressobj(), b"", PACKED
    while left:
        out += stream.decompress(left, 4096)
        left = stream.unconsumed_tail
    print(f"{module.__name__}: {len(out)} of {len(DATA)} bytes, eof {stream.eof}")
    return out, stream


right, _ = by_tail(zlib)
short, stream = by_tail(isal_zlib)
rest = b""
while not stream.eof:
    rest += stream.decompress(b"", 4096)
print(f'isal.isal_zlib, asked again with b"" until eof: {len(short + rest)} of {len(DATA)} bytes')
sys.exit(not (right == DATA and len(short) < len(DATA) and short + rest == DATA))
EOF
