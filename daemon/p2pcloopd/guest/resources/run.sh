# shellcheck shell=dash
# The last step of a first root that runs one command in the root at /root instead of its init.
# /dev is the only directory that every root has and that is no part of the image: command.sh and
# what it needs lie in a directory there.
set +f
place=/dev/.p2pcloop
mkdir $place
cp /bin/busybox /command /lib/become.sh /lib/command.sh /lib/start.sh $place
chmod 755 $place/busybox

load virtio_console
# port NAME: waits for the port of that name, and links it into our place.
port() {
    tries=0
    until place_port "$1"; do
        tries=$((tries + 1))
        [ $tries -le 1000 ] || fail "there is no port $1"
        sleep 0.01
    done
}
place_port() {
    for device in /sys/class/virtio-ports/*; do
        if [ -e "$device/name" ] && read -r named <"$device/name" && [ "$named" = "$1" ]; then
            ln -s "/dev/${device##*/}" "$place/$1"
            return
        fi
    done
    return 1
}
for name in stdin stdout stderr control; do
    port $name
done

for directory in dev proc sys; do
    [ -d /root/$directory ] || fail "the root file system has no /$directory"
    mount --move /$directory /root/$directory
done
exec switch_root /root $place/busybox sh $place/command.sh
