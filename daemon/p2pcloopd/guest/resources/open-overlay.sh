# shellcheck shell=dash
# A step of the guests that look into a files overlay: mounts it at /changes.
disk_is_there /dev/vda
disk_is_there /dev/vdb
mkdir /changes
mount -t ext4 -o rw,discard /dev/vdb /changes || fail "the overlay's file system does not mount"
mkdir -p /changes/upper /lists
