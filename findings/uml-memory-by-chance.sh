#!/bin/bash
# User-Mode Linux: how much memory a guest has depends on the host's address randomisation
#
# Package, version: user-mode-linux 6.1um4+b13 (kernel 6.1.176, Debian 12)
# What one would expect: mem=64M gives every boot of one kernel the same memory.
# What happens: the guest's physical memory begins at the kernel's own image, and the gap up to the
#   end of the heap, which the host places at random, counts as physical memory that is reserved.
#   Each page of the gap needs its entry in the kernel's table of pages, and those are made in the
#   guest's 64 MB: the guest has some 34 to 53 MB, another number at each boot. Without
#   randomisation (setarch -R) there is no gap, and it is always the same.
# Output seen (one run):
#   randomised: 49584K/263972K 46788K/447488K 47300K/413868K 44936K/569104K
#   not randomised: 53456K/65536K 53456K/65536K
# Why it matters: a guest with little memory runs out of it in one boot of many, and measurements
#   of a guest's memory do not repeat.
# Source: arch/um/kernel/um_arch.c, "exec-shield gap"
set -euo pipefail
work=$(mktemp -d)
leader=
stop() {
    # The kernel leads a process group of its own, in which all of its processes are.
    [ -n "$leader" ] || return 0
    kill -KILL -- "-$leader" 2> /dev/null || true
    wait "$leader" 2> /dev/null || true
    leader=
}
trap 'stop; rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User= user-mode-linux=6.1um4+b13 || exit 2
dpkg-deb -x ./*.deb root || exit 2
# memory [setarch -R]: what one boot has, "available/all".
memory() {
    rm -rf log uml
    mkdir uml
    setsid "$@" root/usr/bin/linux.uml mem=64M uml_dir="$work/uml/" \
        root=/dev/none rootwait < /dev/null > log 2>&1 &
    leader=$!
    for _ in $(seq 300); do
        ! grep -aq "^SLUB" log || break
        sleep 0.1
    done
    stop
    found=$(sed -nE 's/^Memory: ([0-9]+K\/[0-9]+K) available.*/\1/p' log)
    [ -n "$found" ] || { cat log; exit 2; }
}

[ "$(cat /proc/sys/kernel/randomize_va_space)" = 2 ] || exit 2
random=() fixed=()
for _ in 1 2 3 4; do
    memory
    random+=("$found")
done
for _ in 1 2; do
    memory setarch -R
    fixed+=("$found")
done
echo "randomised: ${random[*]}"
echo "not randomised: ${fixed[*]}"
differing=$(printf '%s\n' "${random[@]}" | sort -u | wc -l)
[ "$differing" -gt 1 ] && [ "${fixed[0]}" = "${fixed[1]}" ]
