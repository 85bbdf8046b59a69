#!/bin/sh
# Makes root.tar, a Debian as mmdebstrap leaves it. Usage: stock-root.sh MODE SUITE PACKAGES
set -eu
mmdebstrap --mode="$1" --variant=essential --format=tar --include="$3" \
    --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Retries "3"' "$2" root.tar
