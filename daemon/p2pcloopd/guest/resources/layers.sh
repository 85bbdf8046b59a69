# shellcheck shell=dash
# A step of the first root: a function that mounts the read-only file systems of an image.

# mount_layers DIRECTORY DISK PLACE...: mounts the file systems that begin at these bytes of a disk,
# base first. Sets `layers` as overlayfs wants it, and `types` to their types. BYTE/upper is a layer
# in a directory of the file system at BYTE.
mount_layers() {
    parent=$1 disk=$2 layers='' types=''
    shift 2
    for place in "$@"; do
        byte=${place%%/*} device=$disk
        if [ "$byte" != 0 ]; then
            load loop
            device=$(losetup -f)
            losetup -r -o "$byte" "$device" "$disk" ||
                fail "no loop device for byte $byte of $disk"
        fi
        type=$(file_system_on "$device")
        case $type in
            ext4 | btrfs | xfs)
                options=$(without_journal "$type")
                [ ! -e "/modules/$type.order" ] || load "$type"
                ;;
            '') fail "the image holds no file system that is known at byte $byte" ;;
            *)
                case $type in iso9660) module=isofs ;; *) module=$type ;; esac
                [ -e "/modules/$module.order" ] ||
                    fail "this kernel has no $type, which the image holds"
                options=ro
                load "$module"
                ;;
        esac
        mkdir -p "$parent/$byte"
        mount -t "$type" -o "$options" "$device" "$parent/$byte" ||
            fail "the image's $type does not mount"
        layers=$parent/$place${layers:+:$layers}
        types="$types $type"
    done
    load overlay
}
