# shellcheck shell=dash
# A step of the first root of a bare machine: gets an address for its network card by DHCP. The
# client stays, so that the lease is renewed whatever the image's own programs do.
# shellcheck disable=SC2154  # machine.sh sets `card`
printf '#!/bin/sh\n. /lib/lease.sh\n' >/lease-script
chmod 755 /lease-script
ip link set lo up
ip link set "$card" up
# A switch may need half a minute until it passes anything on.
udhcpc -i "$card" -n -t 30 -T 2 -s /lease-script >/dev/null 2>&1 ||
    fail "no DHCP server answers at the network card $card ($mac)"
# shellcheck source=/dev/null  # made by lease.sh
. /lease
ip address add "$ADDRESS" dev "$card"
[ -z "$GATEWAY" ] || ip route add default via "$GATEWAY"
