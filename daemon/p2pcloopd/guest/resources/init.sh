#!/bin/sh
# Process 1 of a guest's first root, and nothing but what all first roots have in common. It is the
# same for every guest. guest/system/initramfs.py writes /settings beside it: assignments, whose
# names are in upper case. STEPS there names the scripts that follow, each in /lib: they are run
# here, and so have the functions and variables of those before them.
# shellcheck disable=SC2034  # the steps use variables that are set here
export PATH=/bin
# Words of the kernel's command line are not patterns.
set -f
# shellcheck source=/dev/null  # made for this guest
. /settings

# fail WHY...: ends the guest; the host shows why.
fail() {
    echo "$FAILURE_MARK$*"
    poweroff -f
    sleep 60
}

# load NAME: inserts a module, after those that it needs: /modules/NAME.order lists them all.
load() {
    read -r order <"/modules/$1.order"
    for module in $order; do
        [ -e "/sys/module/$module" ] || insmod "/modules/$module.ko" ||
            fail "the module $module does not load"
    done
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

# Ctrl-Alt-Del asks process 1 to end, rather than restarting the kernel under it: with a root that is
# mounted, UML's may hang then. Here nothing was written yet.
echo 0 >/proc/sys/kernel/ctrl-alt-del
trap 'umount /root 2>/dev/null; poweroff -f; sleep 60' INT

# UML's watchdog needs a program on the host: an init that opens it gets a kernel warning.
rm -f /dev/watchdog /dev/watchdog0
# Without it, guests that boot the same image would begin with the same random numbers.
cat /seed >/dev/urandom

mode=rw init='' autologin='' root_flags=''
read -r command_line </proc/cmdline
for word in $command_line; do
    case $word in
        ro | rw) mode=$word ;;
        init=*) init=${word#init=} ;;
        rootflags=*) root_flags=,${word#rootflags=} ;;
        "$AUTOLOGIN_WORD") autologin=yes ;;
    esac
done

for driver in $DRIVERS; do
    load "$driver"
done
for step in $STEPS; do
    # shellcheck source=/dev/null  # each step is checked by itself
    . "/lib/$step.sh"
done
