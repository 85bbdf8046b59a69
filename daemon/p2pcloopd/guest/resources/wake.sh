# shellcheck shell=dash
# What a resumed guest does first, by busybox's programs (agent.sh). Usage, as `sh -c`, with $0 any
# word:
#
#     INTERFACE MAC ADDRESS GATEWAY NAMESERVER MTU HOSTNAME
#
# An empty one stays as it is. The standard input has a line of random digits; then the seconds
# since 1970; and then, once the next second begins, its number. Prints what it found, each on a
# line: `behind SECONDS`, `reseeds yes` or `no`, `connections COUNT`.
interface=$1 mac=$2 address=$3 gateway=$4 nameserver=$5 mtu=$6 hostname=$7

read -r seed
echo "$seed" >/dev/urandom
# The kernel itself begins its random numbers anew where it has a driver of vmgenid.
reseeds=no
for device in /sys/bus/acpi/drivers/vmgenid/*:*; do
    [ ! -e "$device" ] || reseeds=yes
done
echo "reseeds $reseeds"

# step SECONDS SLACK: sets the clock, unless it differs by SLACK seconds at most.
step() {
    behind=$(($1 - $(date +%s)))
    if [ "$behind" -gt "$2" ] || [ "$behind" -lt "-$2" ]; then
        date -s "@$1" >/dev/null
    fi
}
read -r now && step "$now" 1 && echo "behind $behind"

# Other ends of connections have given them up, or will: 01 is ESTABLISHED (tcp_states.h of Linux).
echo "connections $(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '
    $4 == "01" && $3 !~ /^(0100007F|0000000000000000FFFF00000100007F|0{24}01000000):/ { n++ }
    END { print n + 0 }')"

[ -z "$hostname" ] || hostname "$hostname"

# name_server: has programs ask the new one, where they asked the one that the host gave before.
name_server() {
    grep -qx "nameserver \($1\|10\.0\.2\.3\)" /etc/resolv.conf || return 0
    changed=$(sed "s/^nameserver .*/nameserver $nameserver/" /etc/resolv.conf)
    echo "$changed" >/etc/resolv.conf # it may be mounted there
}

card=/sys/class/net/$interface
if [ -n "$interface" ] && [ -e "$card" ]; then
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
fi 2>/dev/null

read -r now && step "$now" 0
