# shellcheck shell=dash
# A step of the guests that look into a files overlay: a function that ends such a guest.

# close_overlay: leaves the overlay's file system unmounted, and ends the guest.
close_overlay() {
    cd / || fail "there is no directory /"
    umount /changes || fail "the overlay's file system is in use"
    if dmesg | grep -qE 'I/O error|(SQUASHFS|EXT4-fs) error|erofs:.*(corrupt|fail)'; then
        fail "a disk could not be read or written: $(dmesg | grep -m 1 -E 'error|corrupt|fail')"
    fi
    sync
    poweroff -f
    sleep 60
}
