#!/bin/bash
# A guest without a terminal: files go in, a command runs, what it made comes out.
#     examples/set-up-a-guest.sh IMAGE SCRIPT RESULT
# Runs SCRIPT in a guest of IMAGE, beside the image's own services, and copies the file or directory
# that it leaves at /root/result to RESULT. The guest's changes are lost.
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: $0 IMAGE SCRIPT RESULT" >&2 && exit 2; }
image=$(realpath "$1") script=$2 result=$3
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

P2PCLOOP_HOME=$(mktemp -d)
export P2PCLOOP_HOME
clean_up() {
    p2pcloop stop --all >/dev/null || true
    rm -rf "$P2PCLOOP_HOME"
}
trap clean_up EXIT
guest=$(p2pcloop boot "$image" --detach --mem 256M)

# The image needs nothing for this: no network, no login, no ssh. A guest that boots is waited for.
p2pcloop cp "$script" "$guest:/root/script"
p2pcloop exec "$guest" -- chmod +x /root/script
# Its output and its exit code are those of the script.
p2pcloop exec "$guest" -- /root/script
p2pcloop cp "$guest:/root/result" "$result"
