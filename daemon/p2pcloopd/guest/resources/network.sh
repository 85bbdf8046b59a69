# shellcheck shell=dash
# A step of the first root: sets up the network card, where there is one.
if [ -e "/sys/class/net/$INTERFACE" ]; then
    ip address add "$ADDRESS" dev "$INTERFACE"
    ip link set "$INTERFACE" up
    ip route add default via "$GATEWAY"
    resolv=/root/etc/resolv.conf
    # shellcheck disable=SC2154  # init.sh sets `mode`
    if [ "$mode" = rw ] && [ -d /root/etc ] && [ ! -e $resolv ] && [ ! -L $resolv ]; then
        echo "nameserver $NAMESERVER" >$resolv
    fi
fi
