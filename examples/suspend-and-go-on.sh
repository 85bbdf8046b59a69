#!/bin/bash
# A machine that runs here goes on elsewhere, with all that is in its memory.
#     examples/suspend-and-go-on.sh IMAGE
# Boots IMAGE in QEMU on one node, leaves a note in the guest's memory, suspends it, and resumes it on
# a second node, which has nothing but the link.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 IMAGE" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

homes=$(mktemp -d)
here=$homes/here there=$homes/there
stop() {
    for home in "$here" "$there"; do
        p2pcloop stop --home "$home" --all --time 0 >/dev/null || true
        p2pcloop daemon stop --home "$home" >/dev/null || true
    done
    rm -rf "$homes"
}
trap stop EXIT

p2pcloop seed "$image" --name image --home "$here"
p2pcloop boot image --home "$here" --vm qemu --mem 128M --name g1 --detach
p2pcloop exec --home "$here" g1 -- sh -c 'echo remember me >/dev/note'

# The link has the key to the state, which is private: whoever has it all can go on with the guest.
link=$(p2pcloop suspend g1 --home "$here" --json | sed -E 's/.*"link": ?"([^"]*)".*/\1/')

# It is another user's state to the second node, so that has to trust its key.
key=$(p2pcloop key show --home "$here" | grep -o '@[a-z2-7]*')
p2pcloop resume "$link" --home "$there" --trust "$key" --name g2 --detach
p2pcloop exec --home "$there" g2 -- cat /dev/note
