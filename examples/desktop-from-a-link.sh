#!/bin/bash
# A desktop from a link: one node serves a desktop, optimised with the profile of one boot; another
# one boots it, with nothing but the link, and shows it to a VNC viewer.
#     examples/desktop-from-a-link.sh IMAGE [SECONDS]
# `tools/build-image --desktop` prints the path of its IMAGE. SECONDS, 30 unless given, are left for
# the desktop to start while the boot is recorded.
# A line tells how to open the display. `poweroff` in the guest ends it; nothing is left behind.
set -euo pipefail
[ $# -eq 1 ] || [ $# -eq 2 ] || { echo "usage: $0 IMAGE [SECONDS]" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

work=$(mktemp -d)
clean_up() {
    for node in alice bob; do
        p2pcloop stop --all --home "$work/$node" >/dev/null || true # if this script was killed
        p2pcloop daemon stop --home "$work/$node"
    done
    rm -rf "$work"
}
trap clean_up EXIT

# Alice boots the image once. The boot records what the desktop reads until it rests; the guest is
# shut down some seconds after that.
echo "a boot is recorded"
p2pcloop boot "$image" --display vnc --detach --name recorded --home "$work/alice"
p2pcloop exec recorded --home "$work/alice" -- true # once it is up
sleep "${2-30}"
p2pcloop stop recorded --home "$work/alice"

# What was recorded is packed in its order, in a small layer over the image.
made=$(p2pcloop optimize "$image" --name desktop --home "$work/alice" --json)
link=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["link"])' <<<"$made")
echo "the link: $link"

# Bob boots it by its link.
p2pcloop boot "$link" --display vnc --home "$work/bob" --report "$work/report.json"
python3 - "$work/report.json" <<'END'
import json, sys
told = json.load(open(sys.argv[1]))
print(f"{told['bytes_received']:,} bytes came, of an image of {told['image_stored']:,}")
END
