# shellcheck shell=dash
# The network card of a resumed guest, by busybox's programs (agent.sh). Usage, as `sh -c`, with $0
# any word:
#
#     INTERFACE MAC ADDRESS GATEWAY NAMESERVER MTU
#
# An empty one stays as it is.
interface=$1 mac=$2 address=$3 gateway=$4 nameserver=$5 mtu=$6

# name_server: has programs ask the new one, where they asked the one that the host gave before.
name_server() {
    grep -qx "nameserver \($1\|10\.0\.2\.3\)" /etc/resolv.conf || return 0
    changed=$(sed "s/^nameserver .*/nameserver $nameserver/" /etc/resolv.conf)
    echo "$changed" >/etc/resolv.conf # it may be mounted there
}

card=/sys/class/net/$interface
[ -e "$card" ] || exit 0
exec 2>/dev/null
read -r old <"$card/address"
if [ -n "$mac" ] && [ "$mac" != "$old" ]; then
    ip link set "$interface" down
    ip link set "$interface" address "$mac"
    ip link set "$interface" up
fi
[ -z "$mtu" ] || [ "$(cat "$card/mtu")" -le "$mtu" ] || ip link set "$interface" mtu "$mtu"
if [ -n "$address" ]; then
    before=$(ip route show default dev "$interface" | awk '{ print $3; exit }')
    if ! ip -4 address show dev "$interface" | grep -qF " $address "; then
        ip -4 address flush dev "$interface"
        ip address add "$address" dev "$interface"
    fi
    ip route replace default via "$gateway" dev "$interface"
    name_server "${before:-$gateway}"
    arping -A -c 1 -w 1 -I "$interface" "${address%/*}" >/dev/null
fi
