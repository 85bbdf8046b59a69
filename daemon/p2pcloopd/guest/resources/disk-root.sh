# shellcheck shell=dash
# A step of the first root: mounts the file system of the disk at /root.
# shellcheck disable=SC2154  # init.sh sets `mode` and `root_flags`
disk_is_there "$DISK"
read -r read_only <"/sys/block/${DISK#/dev/}/ro"
[ "$read_only" = 0 ] || mode=ro
# What the guest deletes leaves the overlay, and so is not published.
options=$mode
[ "$mode" = ro ] || options=rw,discard

type=$(file_system_on "$DISK")
case $type in
    ext4 | btrfs | xfs) ;;
    '') fail "the disk holds no ext2, ext3, ext4, btrfs or xfs file system" ;;
    *) fail "the disk holds $type, whose changes can only be kept as files" ;;
esac
[ ! -e "/modules/$type.order" ] || load "$type"

# mount_root OPTIONS
mount_root() {
    mount -t "$type" -o "$1$root_flags" "$DISK" /root
}
# A read-only disk cannot replay its journal.
mount_root "$options" ||
    { [ "$mode" = ro ] && mount_root "$(without_journal "$type")"; } ||
    fail "the root file system ($type) does not mount"
