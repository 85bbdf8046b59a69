#!/bin/bash
# A classroom on one machine: guests of one image on a LAN of their own, which find each other by name.
#     examples/classroom.sh IMAGE   (with busybox in it: tools/build-image --tiny makes one)
# The teacher's guest serves a page; those of two pupils read it. Needs no root. Nothing is left behind.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 IMAGE" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

# An image file that lies here needs no p2pcloopd: nothing but guests has to be stopped at the end.
P2PCLOOP_HOME=$(mktemp -d)
export P2PCLOOP_HOME
clean_up() {
    p2pcloop stop --all || true
    wait
    rm -rf "$P2PCLOOP_HOME"
}
trap clean_up EXIT

# on_lan GUEST SCRIPT: runs a guest until its script ends.
on_lan() {
    p2pcloop run "$image" --name "$1" --net lan:class --mem 128M -- sh -c "$2" </dev/null
}

# The first guest makes the LAN, the others join it. It is gone when the last one has ended.
on_lan teacher 'mkdir /tmp/www && echo "lesson one" >/tmp/www/index.html && httpd -f -h /tmp/www' &
reads='until wget -qO - http://teacher.lan/ 2>/dev/null; do sleep 1; done'
for pupil in anna ben; do
    on_lan "$pupil" "$reads" | sed "s/^/$pupil reads: /" &
    pupils+=($!)
done
wait "${pupils[@]}"
p2pcloop ps
