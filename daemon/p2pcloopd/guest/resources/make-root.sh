# shellcheck shell=dash
# The last step of the guest that makes one file system of the joined root at /root, on /dev/vdd: of
# TYPE, as a live CD has it. The programs are those of the host; their output would be no news.
disk_is_there /dev/vdd
case $TYPE in
    iso9660)
        host-xorriso -as mkisofs -quiet -R -iso-level 3 -cache-inodes -V "$VOLUME" /root \
            >/dev/vdd 2>/said
        ;;
    squashfs)
        host-mksquashfs /root /dev/vdd -noappend -no-progress -quiet -comp "$CODEC" -b "$BLOCK" \
            -processors 1 >/said 2>&1
        ;;
    *) fail "no $TYPE is made here" ;;
esac || fail "no $TYPE was made of the root: $(tail -n 1 /said)"
sync
umount /root || fail "the root is in use"
close_overlay
