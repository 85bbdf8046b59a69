# shellcheck shell=dash
# Starts a session on the guest's display, by busybox's programs (agent.sh). Usage, as `sh -c`:
# USER COMMAND, with an empty USER for the first ordinary one. Says first who it runs as.
place=/dev/.p2pcloop
user=$1 command=$2

# is_up: whether the init has mounted what programs need, and has no more to do before logins.
is_up() {
    grep -q ' /dev/pts ' /proc/mounts || return 1
    if [ -d /run/systemd/system ]; then [ -S /run/systemd/private ]; else ! pidof rcS rc openrc; fi
} >/dev/null

tries=0
until is_up; do
    tries=$((tries + 1))
    [ $tries -le 150 ] || break # an image that never has these may do without
    sleep 0.2
done
# Returns once systemd is so far that it starts services.
[ ! -S /run/systemd/private ] || systemctl --quiet start basic.target

if [ -z "$user" ]; then
    user=$(awk -F: '$3 >= 1000 && $3 < 60000 && $7 !~ /(nologin|false)$/ { print $1; exit }' \
        /etc/passwd)
    user=${user:-root}
fi
id=$(id -u "$user") || exit
echo "$user"
chown "$user" $place/Xauthority
run=/run/user/$id
mkdir -p "$run" && chmod 700 "$run" && chown "$user" "$run"
export P2PCLOOP_SESSION="$command"
# shellcheck disable=SC2016  # the user's shell expands it
start='exec sh -c "$P2PCLOOP_SESSION"'
if [ -x /usr/bin/dbus-run-session ]; then
    # shellcheck disable=SC2016  # as above
    start='exec dbus-run-session -- sh -c "$P2PCLOOP_SESSION"'
fi
# shellcheck disable=SC2016  # as above
exec su -s /bin/sh "$user" -c '
    [ ! -r /etc/profile ] || . /etc/profile
    . '$place'/display
    export XDG_RUNTIME_DIR='"$run"' XDG_SESSION_TYPE=x11
    cd
    '"$start"
