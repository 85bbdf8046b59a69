# shellcheck shell=dash
# The last step of the first root of a bare machine: hands over to the init of the root at /root.
# Nothing is written to the image: files in /run tell its programs to leave the network card as it
# is, since the root is behind it.
# shellcheck disable=SC2154  # choose_init sets `init`, mount_run sets `run`, machine.sh sets `card`
choose_init
check_program "$init" "$init"

# write FILE: writes the standard input there, below /run.
write() {
    mkdir -p "${1%/*}"
    cat >"$1"
}

if mount_run; then
    write "$run/systemd/network/00-p2pcloop.network" <<END
[Match]
MACAddress=$mac
[Network]
DHCP=no
KeepConfiguration=yes
${NAMESERVER:+DNS=$NAMESERVER}
END
    write "$run/NetworkManager/conf.d/p2pcloop.conf" <<END
[keyfile]
unmanaged-devices=mac:$mac
END
fi
# Debian's ifupdown would set up the card anew, and take it down before the root is unmounted.
if find_real /etc/network/interfaces && [ -f "/root$real" ]; then
    printf 'auto lo\niface lo inet loopback\n' >/interfaces
    mount --bind /interfaces "/root$real"
fi
[ -z "$NAMESERVER" ] || give_name_server

release=$(uname -r)
[ -d "/root/lib/modules/$release" ] ||
    echo "p2pcloop: the image has no drivers for this kernel ($release): the machine has those of" \
        "its network card, keyboard and disk alone"
echo "$START_MARK$init"
for directory in dev proc sys; do
    [ -d /root/$directory ] && mount --move /$directory /root/$directory
done
exec switch_root /root "$init" "$@"
