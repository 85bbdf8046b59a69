#!/bin/bash
# isoinfo -l prints users and groups in octal, and set-id bits not at all
#
# Package, version: genisoimage 9:1.1.11-3.4 (Debian 12); the CD is written and read back by
#   xorriso 1.5.4-4
# What one would expect: a listing in the form of `ls -l` shows the numbers of user and group as
#   `ls -ln` does, and a set-user-id program as rws.
# What happens: user 1000 is listed as 1750, and a set-user-id program as rwx. Both are right on the
#   CD. The manual page says "permissions, file names and ownerships", and not in which form.
# Output seen:
#   isoinfo: -rwxr-xr-x 1750 14
#   xorriso: -rwsr-xr-x 1000 12
# Why it matters: compared by isoinfo, a remastered CD has owners that do not exist, and seems to
#   have lost its set-id programs.
# Source: IEEE P1282 (Rock Ridge), 4.1.1, PX: the numbers of user and group, the mode of stat(2)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User= genisoimage=9:1.1.11-3.4 xorriso=1.5.4-4 \
    libisoburn1=1.5.4-4 libburn4 libisofs6 libjte2 libbz2-1.0 libmagic1 || exit 2
for package in *.deb; do dpkg-deb -x "$package" root || exit 2; done
export LD_LIBRARY_PATH="$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu"
xorriso() { root/usr/bin/xorriso -no_rc "$@" 2> log || { cat log; exit 2; }; }

echo program > program
chmod 4755 program
xorriso -outdev cd.iso -map program /program -chown 1000 /program -- -chgrp 12 /program -- -commit
theirs=$(root/usr/bin/isoinfo -R -l -i cd.iso | awk '$NF == "program" { print $1, $3, $4 }')
right=$(xorriso -indev cd.iso -lsl / | awk '/program/ { print $1, $3, $4 }')
echo "isoinfo: $theirs"
echo "xorriso: $right"
[ "$theirs" = "-rwxr-xr-x 1750 14" ] && [ "$right" = "-rwsr-xr-x 1000 12" ]
