#!/bin/bash
# User-Mode Linux takes every word that begins with "con" for a console
#
# Package, version: user-mode-linux 6.1um4+b13 (kernel 6.1.176, Debian 12)
# What one would expect: a word that the kernel does not know, such as container=lxc or
#   config=1, goes to init's environment, as on every Linux; what UML itself has used (mem=) does not.
# What happens: the other way round. "con" is matched as a prefix, so container=lxc is read as the
#   console "tainer", refused, and reaches no program. mem=64M, which UML has used, is called unknown
#   and is passed to init.
# Output seen:
#   Failed to set up console with configuration string "tainer=lxc" : Couldn't parse device number
#   Unknown kernel command line parameters "mem=64M ordinary=1", will be passed to user space.
# Why it matters: words for a guest's programs (systemd and many an initramfs read /proc/cmdline or
#   their environment) vanish by their first three letters, and init inherits UML's own.
# Source: arch/um/drivers/stdio_console.c, __setup("con", console_setup)
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
mkdir uml
setsid root/usr/bin/linux.uml mem=64M uml_dir="$work/uml/" umid=finding root=/dev/none rootwait \
    container=lxc ordinary=1 < /dev/null > log 2>&1 &
leader=$!
for _ in $(seq 300); do
    ! grep -aq "^Unknown kernel command line" log || break
    sleep 0.1
done
stop
# uml_dir= and umid= are listed as well: left out, as they hold a temporary path.
refused=$(grep -a '^Failed to set up console' log || true)
unknown=$(grep -a '^Unknown kernel command line' log || true)
unknown=$(sed -E 's/ ?uml_dir=[^ "]*//; s/ ?umid=[^ "]*//' <<< "$unknown")
[ -n "$unknown" ] || { cat log; exit 2; }
printf '%s\n%s\n' "$refused" "$unknown"
[[ $refused == *'"tainer=lxc"'* && $unknown == *'"mem=64M ordinary=1"'* ]]
