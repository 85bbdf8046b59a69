#!/bin/sh
# What udhcpc runs (network.sh): keeps what a DHCP server gave. udhcpc checks that these are addresses.
[ "$1" = bound ] || exit 0
# shellcheck disable=SC2154  # udhcpc sets them
echo "ADDRESS='$ip/$mask' GATEWAY='${router%% *}' NAMESERVER='${dns%% *}'" >/lease
