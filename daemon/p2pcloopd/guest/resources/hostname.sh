# shellcheck shell=dash
# A step of the first root: the guest's host name is the name that its user gave it. An init that sets
# the image's own reads it in /etc/hostname: another file is mounted over that. systemd reads the
# kernel's command line first, and may replace the file.
# shellcheck disable=SC2154  # choose_init sets `init`, find_real sets `real`
hostname "$NAME"
choose_init
find_real "$init" || real=''
case $real in
    */systemd) ;;
    *)
        if find_real /etc/hostname && [ -f "/root$real" ]; then
            echo "$NAME" >/hostname
            mount --bind /hostname "/root$real"
        fi
        ;;
esac
