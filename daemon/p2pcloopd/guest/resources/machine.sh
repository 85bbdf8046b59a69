# shellcheck shell=dash
# A step of the first root of a bare machine: finds the drivers of its devices, and the network card
# by which it started. netboot/machine_root.py makes the table of drivers.
# shellcheck disable=SC2154  # init.sh sets `command_line`

# fail WHY...: instead of init.sh's. A user has a minute to read it, and need not press a key.
fail() {
    echo "$FAILURE_MARK$*"
    echo "p2pcloop: the machine starts again in a minute"
    sleep 60
    reboot -f
    sleep 60
}

node='' mac='' image=''
for word in $command_line; do
    case $word in
        p2pcloop.node=*) node=${word#*=} ;;
        p2pcloop.mac=*) mac=${word#*=} ;;
        p2pcloop.image=*) image=${word#*=} ;;
    esac
done

# load_drivers: inserts the modules of all devices that are there, as /modules/drivers lists them. A
# module that does not load is one that this machine may not need.
load_drivers() {
    set +f
    drivers=$(cat /sys/bus/*/devices/*/modalias 2>/dev/null | awk -f /lib/drivers.awk)
    set -f
    for driver in $drivers; do
        read -r order <"/modules/$driver.order"
        for module in $order; do
            [ -e "/sys/module/$module" ] || insmod "/modules/$module.ko" ||
                echo "p2pcloop: the driver $module does not load"
        done
    done
}

# find_card: sets `card` to the interface that has the address `mac`.
find_card() {
    set +f
    for place in /sys/class/net/*; do
        read -r address <"$place/address" && [ "$address" = "$mac" ] && card=${place##*/}
    done
    set -f
    [ -n "$card" ]
}

if [ -z "$node" ] || [ -z "$mac" ] || [ -z "$image" ]; then
    fail "the kernel's command line does not name a node, a network card and an image"
fi
# Keyboards that are no devices of a bus.
for driver in $KEYBOARDS; do
    [ ! -e "/modules/$driver.order" ] || load "$driver"
done
card='' tries=0
# A driver of a bus makes further devices appear, those of USB after a while.
until find_card; do
    tries=$((tries + 1))
    if [ $tries -gt 50 ]; then
        fail "there is no driver here for the network card $mac"
    elif [ $tries -gt 3 ]; then
        sleep 0.2
    fi
    load_drivers
done
