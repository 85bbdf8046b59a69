# shellcheck shell=dash
# Usage: start.sh PLACE COMMAND... Starts the command of a guest in a session of its own, whose
# number is left in PLACE/leader.
place=$1
shift
echo $$ >"$place/leader"
cd /root 2>/dev/null || cd / || exit
exec "$place/busybox" setsid "$place/busybox" env -i HOME=/root USER=root LOGNAME=root \
    SHELL=/bin/sh PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$place/busybox" sh "$place/become.sh" "$@"
