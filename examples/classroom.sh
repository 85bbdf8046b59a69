#!/bin/bash
# A classroom on one machine: guests of one image on a LAN of their own, which find each other by name.
#     examples/classroom.sh IMAGE   (with busybox in it: tools/build-image --tiny makes one)
# Boots three guests in the background, has the teacher's serve a page, and the pupils' read it. Needs
# no root. Nothing is left behind.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 IMAGE" >&2 && exit 2; }
image=$(realpath "$1")
PATH=$(realpath "$(dirname "$0")/../.venv/bin"):$PATH

# An image file that lies here needs no p2pcloopd: nothing but guests has to be stopped at the end.
P2PCLOOP_HOME=$(mktemp -d)
export P2PCLOOP_HOME
clean_up() {
    p2pcloop stop teacher anna ben || true
    rm -rf "$P2PCLOOP_HOME"
}
trap clean_up EXIT

# The first guest makes the LAN, the others join it. It is gone when the last one has ended.
for guest in teacher anna ben; do
    p2pcloop boot "$image" --detach --name "$guest" --net lan:class --mem 128M
done
p2pcloop ps

p2pcloop exec teacher -- sh -c 'mkdir /tmp/www && echo "lesson one" >/tmp/www/index.html'
p2pcloop exec teacher -- httpd -h /tmp/www
for pupil in anna ben; do
    echo "$pupil reads: $(p2pcloop exec "$pupil" -- wget -qO - http://teacher.lan/)"
done
