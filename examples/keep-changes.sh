#!/bin/bash
# What a guest writes goes into an overlay, one file; the image stays as it is.
#     examples/keep-changes.sh IMAGE OVERLAY
# Boots IMAGE twice with OVERLAY: what you write in the first guest is there in the second. Then
# joins both into OVERLAY.cloop, an image of its own that can be seeded.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 IMAGE OVERLAY" >&2 && exit 2; }
image=$(realpath "$1") overlay=$2
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

# An image file that lies here needs no p2pcloopd: nothing but guests has to be stopped at the end.
P2PCLOOP_HOME=$(mktemp -d)
export P2PCLOOP_HOME
clean_up() {
    p2pcloop stop --all >/dev/null || true # if this script was killed
    rm -rf "$P2PCLOOP_HOME"
}
trap clean_up EXIT

# The overlay is made at the first boot. It opens only over the content that it was made on.
for boot in first second; do
    echo "the $boot boot; write something, then: poweroff"
    p2pcloop boot "$image" --overlay "$overlay" --mem 256M
done

# How much of the device has changed, and how much room that takes.
p2pcloop info "$overlay"

p2pcloop export "$image" "$overlay.cloop" --overlay "$overlay" --force
p2pcloop info "$overlay.cloop"
