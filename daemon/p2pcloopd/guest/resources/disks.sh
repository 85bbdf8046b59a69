# shellcheck shell=dash
# A step of the first root: functions that wait for disks and tell what is on them.

# disk_is_there DEVICE: waits for a disk.
disk_is_there() {
    tries=0
    until [ -b "$1" ]; do
        tries=$((tries + 1))
        [ $tries -le 100 ] || fail "there is no disk $1"
        sleep 0.1
    done
    echo "$READ_AHEAD_KB" >"/sys/block/${1#/dev/}/queue/read_ahead_kb"
}

# magic DEVICE SKIP COUNT UNIT: COUNT units of UNIT bytes, in hexadecimal digits.
magic() {
    dd if="$1" bs="$4" skip="$2" count="$3" 2>/dev/null | od -An -tx1 | tr -d ' \n'
}

# file_system_on DEVICE: tells its type, by the same bytes as p2pcloop/formats/filesystem.py.
file_system_on() {
    if [ "$(magic "$1" 540 1 2)" = 53ef ]; then
        echo ext4
    elif [ "$(magic "$1" 0 4 1)" = 68737173 ]; then
        echo squashfs
    elif [ "$(magic "$1" 0 4 1)" = 58465342 ]; then
        echo xfs
    elif [ "$(magic "$1" 8200 1 8)" = 5f42485266535f4d ]; then
        echo btrfs
    elif [ "$(magic "$1" 32769 5 1)" = 4344303031 ]; then
        echo iso9660
    elif [ "$(magic "$1" 256 1 4)" = e2e1f5e0 ]; then
        echo erofs
    fi
}

# without_journal TYPE: the options to mount a disk that cannot be written, whose journal therefore
# cannot be replayed.
without_journal() {
    case $1 in
        ext4) echo ro,noload ;;
        btrfs) echo ro,rescue=nologreplay ;;
        xfs) echo ro,norecovery ;;
        *) echo ro ;;
    esac
}
