#!/bin/bash
# A classroom of computers without disks: each one that is switched on and starts from the network
# boots the same image.
#     sudo examples/classroom-of-machines.sh IMAGE INTERFACE [DIRECTORY]
# IMAGE is a file, a link or a name, INTERFACE the network card of this machine to the classroom. With
# a DIRECTORY the changes of each machine are kept there; else they are gone when it is switched off.
# Ctrl-C ends it. A machine that runs then waits, and goes on when this is started again.
set -euo pipefail
case $# in 2 | 3) ;; *) echo "usage: $0 IMAGE INTERFACE [DIRECTORY]" >&2 && exit 2 ;; esac
image=$1 interface=$2 changes=${3-}
tools=$(realpath "$(dirname "$0")/../tools")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

options=()
if [ -n "$changes" ]; then
    mkdir -p "$changes"
    options+=(--keep "$changes")
fi
# The machines' kernel; it does nothing where that is here.
"$tools/get-stock-kernel" >/dev/null

# The DHCP server of the classroom goes on giving addresses. Without one, add:
#     --dhcp server --range 192.168.77.100,192.168.77.199
exec p2pcloop netboot "$image" --lan "$interface" "${options[@]}"
