#!/bin/sh
# Makes root.tar, a Debian as mmdebstrap leaves it. Usage: stock-root.sh OPTION... SUITE
set -eu
mmdebstrap --format=tar --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Retries "3"' "$@" root.tar
