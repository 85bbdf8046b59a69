#!/bin/sh
# Makes root.tar, a Debian as mmdebstrap leaves it. Usage: stock-root.sh OPTION... SUITE
set -eu
# With dpkg's option path-exclude, each package would go through a filter in Python: that took as
# much processor time as all the rest.
# shellcheck disable=SC2016  # $1 is mmdebstrap's
mmdebstrap --format=tar --dpkgopt=force-unsafe-io \
    --customize-hook='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*' \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Retries "3"' "$@" root.tar
