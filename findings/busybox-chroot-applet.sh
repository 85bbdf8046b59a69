#!/bin/bash
# Debian's busybox: `chroot DIR wget` runs busybox's own wget, if /proc is mounted in DIR
#
# Package, version: busybox-static 1:1.35.0-4+deb12u1+b1 (Debian 12)
# What one would expect: `busybox chroot DIR PROGRAM` runs DIR's PROGRAM, found by PATH, as
#   coreutils' chroot does; and `env PATH=... PROGRAM` looks along that PATH.
# What happens: wherever an applet has the name, env, chroot, xargs and others run the applet and
#   ask PATH only if that fails. They run it as /proc/self/exe, so within a chroot it depends on
#   whether /proc is mounted there: without it DIR's own program runs, with it busybox's.
#   A path (/bin/wget) always means the file.
# Output seen:
#   env with a PATH to another wget: applet
#   chroot without /proc, wget: the root's program
#   chroot with /proc, wget: applet
#   chroot with /proc, /bin/wget: the root's program
# Why it matters: a rescue system or an initramfs runs its own tar, dpkg, mount or wget in place of
#   the installed system's, as soon as its author does the right thing and mounts /proc.
# Source: busybox, Config.in: FEATURE_PREFER_APPLETS, and BUSYBOX_EXEC_PATH ("/proc/self/exe")
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User= busybox-static=1:1.35.0-4+deb12u1+b1 || exit 2
dpkg-deb -x ./*.deb unpacked || exit 2
busybox=$work/unpacked/bin/busybox
mkdir -p root/bin root/proc
cp "$busybox" root/bin/sh
printf '#!/bin/sh\necho here\n' > root/bin/wget
chmod +x root/bin/wget

# which: says which wget wrote its standard input.
which() {
    local said
    said=$(cat)
    case $said in
        here) echo "the root's program" ;;
        *BusyBox*) echo "applet" ;;
        *) echo "neither: $said" ;;
    esac
}

# inside PROGRAM [with-proc]: in a user namespace, so that no root is needed.
inside() {
    # shellcheck disable=SC2016  # the inner shell's own
    local script='exec "$1" chroot root "$2"'
    [ $# = 1 ] || script="mount --rbind /proc root/proc && $script"
    PATH=/bin:/usr/bin unshare --user --map-root-user --mount \
        sh -c "$script" sh "$busybox" "$1" 2>&1 | which
}

unshare --user --map-root-user --mount true || exit 2
seen="env with a PATH to another wget: $(PATH=/bin "$busybox" env PATH="$work/root/bin" wget 2>&1 | which)
chroot without /proc, wget: $(inside wget)
chroot with /proc, wget: $(inside wget with-proc)
chroot with /proc, /bin/wget: $(inside /bin/wget with-proc)"
echo "$seen"
[ "$seen" = "env with a PATH to another wget: applet
chroot without /proc, wget: the root's program
chroot with /proc, wget: applet
chroot with /proc, /bin/wget: the root's program" ]
