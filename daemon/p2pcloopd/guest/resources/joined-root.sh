# shellcheck shell=dash
# A step of the first root: joins the image's file systems and the overlay's at /root.
disk_is_there "$DISK"
disk_is_there /dev/vdb
# shellcheck disable=SC2086  # one word a place
mount_layers /image "$DISK" $PLACES
mkdir /changes
[ ! -e /modules/ext4.order ] || load ext4
mount -t ext4 -o rw,discard /dev/vdb /changes || fail "the overlay's file system does not mount"
join_root
