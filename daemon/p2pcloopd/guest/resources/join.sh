# shellcheck shell=dash
# A step of the first root: a function that joins an image's file systems and the one of the changes.
# shellcheck disable=SC2154  # init.sh sets `mode`, mount_layers sets `layers` and `types`

is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# join_root: joins the file systems of mount_layers, and above them that at /changes, at /root.
join_root() {
    mkdir -p /changes/upper /changes/work
    noted=index=off,metacopy=off,redirect_dir=off,xino=off
    directories=lowerdir=$layers,upperdir=/changes/upper,workdir=/changes/work
    mount -t overlay -o "$mode,$noted,$directories" overlay /root ||
        fail "image and overlay cannot be joined"

    # What a system expects to be able to write to, and what is mounted below.
    if [ "$mode" = rw ]; then
        for name in dev etc home proc run sys tmp var; do
            is_there /root/$name || mkdir /root/$name
        done
        [ -L /root/tmp ] || [ -k /root/tmp ] || chmod 1777 /root/tmp
        # KNOPPIX of the CD's time had these on a RAM disk.
        if [ "${types#*iso9660}" != "$types" ] || is_there /root/ramdisk; then
            is_there /root/ramdisk || mkdir /root/ramdisk
            for name in etc home tmp var; do
                case $(readlink /root/$name) in
                    /ramdisk/* | ramdisk/*) mkdir -p /root/ramdisk/$name ;;
                    *) is_there /root/ramdisk/$name || ln -s ../$name /root/ramdisk/$name ;;
                esac
            done
        fi
    fi
    name=''
    [ -L /root/etc ] || [ -L /root/etc/hostname ] || [ ! -f /root/etc/hostname ] ||
        read -r name </root/etc/hostname
    hostname "${name:-p2pcloop}"
}
