#!/bin/bash
# genisoimage cuts long symbolic links short, says nothing, and ends with 0
#
# Package, version: genisoimage 9:1.1.11-3.4 (Debian 12); read back by xorriso 1.5.4-4
# What one would expect: a symbolic link of 271 bytes, far below the 4095 of Linux, is written whole
#   (Rock Ridge has no limit), or genisoimage warns.
# What happens: what does not fit into one directory record and one further SL field is lost in the
#   middle. The link leads to another place, 80 bytes long here. There is no warning. The limit
#   depends on the number of components: each costs two bytes more. xorriso writes the same link
#   whole; pycdlib refuses the whole CD that genisoimage wrote.
# Output seen:
#   241 bytes: genisoimage ends with 0, the CD has 241 bytes, the same target: yes
#   271 bytes: genisoimage ends with 0, the CD has 80 bytes, the same target: no
#   271 bytes, by xorriso: the CD has 271 bytes, the same target: yes
# Why it matters: copies of trees with long relative links (stores of packages, build farms) are
#   wrong without a sign of it, and readers differ in what they make of the CD.
# Source: IEEE P1282 (Rock Ridge), 4.1.3, SL and its CONTINUE flag
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User= genisoimage=9:1.1.11-3.4 xorriso=1.5.4-4 \
    libisoburn1=1.5.4-4 libburn4 libisofs6 libjte2 libbz2-1.0 libmagic1 || exit 2
for package in *.deb; do dpkg-deb -x "$package" root || exit 2; done
export LD_LIBRARY_PATH="$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu"
xorriso() { root/usr/bin/xorriso -no_rc "$@" > log 2>&1 || { cat log; exit 2; }; }

# write_tree COMPONENTS: a link with so many components of two letters, and one of one.
write_tree() {
    rm -rf tree
    mkdir tree
    target=$(printf 'ab/%.0s' $(seq "$1"))x
    ln -s "$target" tree/link
}

# read_back: sets `found` and `same`.
read_back() {
    rm -rf out
    xorriso -osirrox on -indev cd.iso -extract / out
    found=$(readlink out/link)
    same=no
    [ "$found" != "$target" ] || same=yes
}

seen=
for components in 80 90; do
    write_tree "$components"
    code=0
    timeout 60 root/usr/bin/genisoimage -quiet -R -o cd.iso tree || code=$?
    read_back
    echo "${#target} bytes: genisoimage ends with $code, the CD has ${#found} bytes," \
        "the same target: $same"
    seen+=" $code:$same"
done
rm -f cd.iso
xorriso -outdev cd.iso -map tree / -commit
read_back
echo "${#target} bytes, by xorriso: the CD has ${#found} bytes, the same target: $same"
[ "$seen $same" = " 0:yes 0:no yes" ]
