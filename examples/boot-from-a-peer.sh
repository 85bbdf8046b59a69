#!/bin/bash
# Two nodes on one machine: the first serves an image, the second boots it and has only the link.
#     examples/boot-from-a-peer.sh IMAGE      (tools/build-image makes one, and prints its path)
# The guest's console is this terminal; `poweroff` in the guest ends it. Nothing is left behind.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 IMAGE" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

# Each node keeps its state in a home of its own, and has its own p2pcloopd.
work=$(mktemp -d)
clean_up() {
    for node in alice bob; do
        p2pcloop stop --all --home "$work/$node" >/dev/null || true # if this script was killed
        p2pcloop daemon stop --home "$work/$node"
    done
    rm -rf "$work"
}
trap clean_up EXIT

# Alice serves the image where it lies. The last line that `seed` prints is the command for others;
# a program takes the link from --json.
seeded=$(p2pcloop seed "$image" --name example --home "$work/alice" --json)
link=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["link"])' <<<"$seeded")
echo "the link: $link"

# Bob boots it: what the guest reads comes from Alice, piece by piece.
p2pcloop boot "$link" --mem 256M --home "$work/bob" --report "$work/report.json"

python3 - "$work/report.json" <<'END'
import json, sys
told = json.load(open(sys.argv[1]))
print(f"{told['bytes_received']:,} bytes came, of an image of {told['image_stored']:,}:")
for peer, count in told["sources"].items():
    print(f"  {count:,} from {peer}")
END
