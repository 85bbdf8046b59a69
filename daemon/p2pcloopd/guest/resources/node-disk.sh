# shellcheck shell=dash
# A step of the first root of a bare machine: connects its disk, which is the node's (nbd_root.c).
# shellcheck disable=SC2154  # machine.sh sets `node`, `mac` and `image`
read -r order </modules/nbd.order
for module in $order; do
    # Of 16 devices, the usual number, udev would look at each.
    [ "$module" != nbd ] || module="nbd.ko nbds_max=1"
    # shellcheck disable=SC2086  # words
    insmod /modules/${module%.ko*}.ko ${module#*.ko} || fail "the module ${module%.ko*} does not load"
done
read -r boot </proc/sys/kernel/random/boot_id
refusal=$(nbd_root "${node%:*}" "${node#*:}" "$image/$mac/$boot") || fail "$refusal"
