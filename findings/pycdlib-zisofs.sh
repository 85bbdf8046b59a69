#!/bin/bash
# pycdlib does not open a CD on which one file is compressed by zisofs
#
# Package, version: pycdlib 1.22.0; the CD is made by xorriso 1.5.4-4 (Debian 12)
# What one would expect: a reader that cannot inflate zisofs files reads the others, or all of them
#   as stored: the ZF field is an addition that readers may ignore.
# What happens: open() raises PyCdlibInvalidISO("Unknown SUSP record"), so not even the list of
#   files can be had. It reads every directory before open() returns. Linux mounts the CD.
# Output seen:
#   without zisofs: 2 files
#   one file by zisofs: PyCdlibInvalidISO: Unknown SUSP record
# Why it matters: one entry that a program does not need makes the whole CD unreadable. Live CDs
#   with zisofs files are as old as KNOPPIX.
# Source: IEEE P1281 (SUSP), section 4: fields that are not known are skipped
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 2
"$work/venv/bin/pip" install -q --disable-pip-version-check pycdlib==1.22.0 || exit 2
cd "$work"
apt-get download -qq -o APT::Sandbox::User= xorriso=1.5.4-4 libisoburn1=1.5.4-4 \
    libburn4 libisofs6 libjte2 || exit 2
for package in *.deb; do dpkg-deb -x "$package" root || exit 2; done
mkdir tree
echo "as it is" > tree/plain
head -c 200000 /dev/zero > tree/packed
write_cd() {
    LD_LIBRARY_PATH="$work/root/usr/lib/x86_64-linux-gnu" root/usr/bin/xorriso -no_rc "$@" \
        > log 2>&1 || { cat log; exit 2; }
}
write_cd -outdev plain.iso -map tree / -commit
write_cd -outdev zisofs.iso -zisofs level=9 -map tree / -set_filter_r --zisofs /packed -- -commit
venv/bin/python - <<'EOF'
import sys

import pycdlib
from pycdlib.pycdlibexception import PyCdlibInvalidISO


def read(path):
    cd = pycdlib.PyCdlib()
    try:
        cd.open(path)
    except PyCdlibInvalidISO as err:
        return f"PyCdlibInvalidISO: {err}"
    return f"{sum(child.is_file() for child in cd.list_children(rr_path='/'))} files"


plain, zisofs = read("plain.iso"), read("zisofs.iso")
print(f"without zisofs: {plain}\none file by zisofs: {zisofs}")
sys.exit((plain, zisofs) != ("2 files", "PyCdlibInvalidISO: Unknown SUSP record"))
EOF
