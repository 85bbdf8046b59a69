#!/bin/bash
# An image as a block device for other programs: everything that speaks NBD can read it, and write
# to its overlay.
#     examples/use-with-nbd.sh IMAGE OUT
# Writes the whole image to OUT, a raw image, through NBD.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 IMAGE OUT" >&2 && exit 2; }
image=$(realpath "$1") out=$2
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

work=$(mktemp -d)
export P2PCLOOP_HOME=$work/home
trap 'kill "$server" 2>/dev/null && wait "$server" || true
      rm -rf "$work"' EXIT

# IMAGE may as well be a link or a name; then what is read comes from peers as it is needed.
mkfifo "$work/said"
p2pcloop block "$image" --nbd "unix:$work/nbd" --overlay "$work/scratch.delta" 2>"$work/said" &
server=$!
exec 3<"$work/said"
read -r ready <&3 # "serving at unix:..., ...": from now on clients may connect
echo "$ready"
uri="nbd+unix:///?socket=$work/nbd"

nbdinfo "$uri"
nbdcopy "$uri" "$out"
qemu-img compare -f raw -F raw "$uri" "$out"

# As root, with the kernel's own client, it is a disk that can be mounted:
#     modprobe nbd && nbd-client -unix "$work/nbd" /dev/nbd0 && mount /dev/nbd0 /mnt
