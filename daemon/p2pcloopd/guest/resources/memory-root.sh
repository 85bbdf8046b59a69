# shellcheck shell=dash
# A step of the first root of a bare machine: joins the image's file systems, and for the changes one
# in the machine's memory.
# shellcheck disable=SC2154  # init.sh sets `mode`
# shellcheck disable=SC2086  # one word a place
disk_is_there "$DISK"
mount_layers /image "$DISK" $PLACES
mkdir /changes
mount -t tmpfs -o mode=755 tmpfs /changes || fail "there is no memory for changes"
join_root
# The root is mounted, and is not of the type that the image thinks.
if [ "$mode" = rw ] && find_real /etc/fstab && [ -f "/root$real" ]; then
    awk '/^[[:blank:]]*#/ || $2 != "/"' "/root$real" >/fstab
    cat /fstab >"/root$real"
fi
