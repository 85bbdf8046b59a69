#!/bin/bash
# python-zstandard: a skippable frame in front gives nothing, an error, or the data, by method
#
# Package, version: zstandard 0.25.0
# What one would expect: a skippable frame (RFC 8878, 3.1.2) before a frame is valid input, and every
#   way to decompress skips it; the `zstd` program does.
# What happens: decompress() raises an error that names the length of the skippable frame.
#   decompressobj() and read_to_iter() return no bytes at all and raise nothing.
#   stream_reader() and copy_stream() return the data.
# Output seen:
#   decompress: ZstdError: decompression error: decompressed 0 bytes; expected 4
#   decompressobj: 0 bytes
#   read_to_iter: 0 bytes
#   stream_reader: 500 bytes
#   copy_stream: 500 bytes
# Why it matters: files that begin with a skippable frame exist (pzstd, seekable and labelled
#   formats). A reader by decompressobj() takes them for empty files.
# Source: RFC 8878, section 3.1.2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check zstandard==0.25.0 || exit 2
"$work/venv/bin/python" - <<'EOF'
import io
import struct
import sys

import zstandard

DATA = b"hello" * 100
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"note"
INPUT = SKIPPABLE + zstandard.ZstdCompressor().compress(DATA)


def copied():
    out = io.BytesIO()
    zstandard.ZstdDecompressor().copy_stream(io.BytesIO(INPUT), out)
    return out.getvalue()


WAYS = {
    "decompress": lambda: zstandard.ZstdDecompressor().decompress(INPUT),
    "decompressobj": lambda: zstandard.ZstdDecompressor().decompressobj().decompress(INPUT),
    "read_to_iter": lambda: b"".join(zstandard.ZstdDecompressor().read_to_iter(io.BytesIO(INPUT))),
    "stream_reader": lambda: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(INPUT)).read(),
    "copy_stream": copied,
}
seen = {}
for name, way in WAYS.items():
    try:
        seen[name] = way()
        print(f"{name}: {len(seen[name])} bytes")
    except zstandard.ZstdError as err:
        seen[name] = None
        print(f"{name}: ZstdError: {err}")
described = {
    "decompress": None,
    "decompressobj": b"",
    "read_to_iter": b"",
    "stream_reader": DATA,
    "copy_stream": DATA,
}
sys.exit(seen != described)
EOF
