# shellcheck shell=dash
# The services of a LAN, in a sandbox with a network namespace of its own. Usage, as `sh -c`, with $0
# any word:
#
#     BUSYBOX NFT DNSMASQ CONTROL RULES SETTINGS MTU GATEWAY UPLINK ROUTE
#
# CONTROL, RULES and SETTINGS are descriptors. By CONTROL this tells `bridge` when the bridge is
# there, and is told `uplink` when the uplink's tap is; then it tells `ready`. From then on it is
# told lines of hosts(5), each time all of them, with a line `.` behind them, and tells `named`. It
# ends with its owner.
set -e
busybox=$1 nft=$2 dnsmasq=$3 control=$4 rules=$5 settings=$6 mtu=$7 gateway=$8 uplink=$9
shift 9
route=$1

"$nft" -f - <&"$rules"
"$busybox" cat <&"$settings" >/run/settings
: >/run/hosts
"$busybox" ip link set lo up
# With an address of its own: else that would change with the ports that come and go, and the guests
# would not find it.
"$busybox" ip link add lan address 02:70:32:70:00:01 type bridge
"$busybox" ip address add "$gateway" dev lan
"$busybox" ip link set lan mtu "$mtu" up
echo bridge >&"$control"

read -r _ <&"$control"
"$busybox" ip address add "$uplink" dev uplink
"$busybox" ip route add default via "$route"
# It logs a line when it answers. If it ends, so does all of the LAN.
"$dnsmasq" -k -C /run/settings --pid-file=/run/pid 2>&1 | {
    read -r line && echo "$line"
    case $line in *" started"*) echo ready >&"$control" ;; esac
    "$busybox" cat
    kill -9 $$ 2>/dev/null
} &

while read -r line <&"$control"; do
    if [ "$line" != . ]; then
        echo "$line" >>/run/hosts.new
        continue
    fi
    : >>/run/hosts.new
    "$busybox" mv /run/hosts.new /run/hosts
    # It reads the file again.
    read -r server </run/pid
    kill -HUP "$server" 2>/dev/null
    echo named >&"$control"
done
