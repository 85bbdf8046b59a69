# shellcheck shell=dash
# A step of the first root in QEMU: what a PC has of devices gets the names that all guests have.
# shellcheck disable=SC2154  # init.sh has the settings
[ ! -e /modules/virtio_rng.order ] || load virtio_rng
for hash in $HASHES; do
    [ ! -e "/modules/$hash.order" ] || load "$hash"
done

# find_card PLACE: sets `card` to the name of the network card at a place of the PCI bus.
find_card() {
    set +f
    for card in "$1"/virtio*/net/*; do
        card=${card##*/}
    done
    set -f
    [ "$card" != '*' ]
}

# The network cards get their names by their places on the bus: NN=NAME.
if [ -e /modules/virtio_net.order ]; then
    load virtio_net
    for wanted in $PC_CARDS; do
        place=/sys/bus/pci/devices/0000:00:${wanted%%=*}.0
        [ -e "$place" ] || continue
        tries=0
        until find_card "$place"; do
            tries=$((tries + 1))
            [ $tries -le 100 ] || fail "there is no network card at $place"
            sleep 0.1
        done
        [ "$card" = "${wanted#*=}" ] || ip link set "$card" name "${wanted#*=}"
    done
fi

# The console is the first serial line. Images have their login on tty1, and none shows that here.
rm -f /dev/tty1 "/dev/$SERIAL_CONSOLE"
# shellcheck disable=SC2086  # major and minor number
mknod /dev/tty1 c $CONSOLE
