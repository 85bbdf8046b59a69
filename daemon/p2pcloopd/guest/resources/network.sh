# shellcheck shell=dash
# A step of the first root: sets up the network card, where there is one. Nothing is written to the
# image but an empty /etc/resolv.conf, where it has none: to programs an empty one is the same as
# none, and a file can only be mounted over another. A DHCP client of the image finds the card as it
# would be after its own work, and gets the same address.

# ask_for_address: sets ADDRESS, GATEWAY and NAMESERVER by DHCP; they stay empty without an answer.
ask_for_address() {
    printf '#!/bin/sh\n. /lib/lease.sh\n' >/lease-script
    chmod 755 /lease-script
    udhcpc -i "$INTERFACE" -n -q -f -t 5 -T 1 -A 1 -s /lease-script >/dev/null 2>&1 || :
    if [ -f /lease ]; then
        # shellcheck source=/dev/null  # made by lease.sh
        . /lease
        echo "$ADDRESS_MARK$ADDRESS"
    else
        echo "p2pcloop: no DHCP server answers: the network card has no address yet"
    fi
}

if [ -e "/sys/class/net/$INTERFACE" ]; then
    ip link set "$INTERFACE" up
    [ -n "$ADDRESS" ] || ask_for_address
    [ -z "$ADDRESS" ] || ip address add "$ADDRESS" dev "$INTERFACE"
    [ -z "$GATEWAY" ] || ip route add default via "$GATEWAY"
    [ -z "$NAMESERVER" ] || give_name_server
fi
