# shellcheck shell=dash
# Process 1 of a guest that runs one command. Nothing of the image but the command itself is used.
# Pipes stand between the command and the ports of the host: a port can be opened only once, and
# a program may open /dev/stderr anew.
place=/dev/.p2pcloop
busybox=$place/busybox

$busybox mkdir -p /dev/pts /dev/shm
$busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$busybox mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e "/dev/${link%%:*}" ] || $busybox ln -s "${link#*:}" "/dev/${link%%:*}"
done
if [ -d /run ] && [ ! -L /run ]; then
    # The first root has mounted it already where it had something to put there.
    $busybox grep -q " /run tmpfs" /proc/mounts || $busybox mount -t tmpfs -o mode=755 tmpfs /run
    $busybox mkdir -m 1777 /run/lock
fi
$busybox ip link set lo up
[ ! -f /etc/hostname ] || $busybox hostname -F /etc/hostname

exec 3<>$place/control
$busybox mkfifo $place/in $place/out $place/err
$busybox cat $place/stdin >$place/in 3>&- &
$busybox cat $place/out >$place/stdout 3>&- &
output=$!
$busybox cat $place/err >$place/stderr 3>&- &
errors=$!
# The host sends names of signals, for the command and what it started.
while read -r name <&3; do
    read -r leader <$place/leader && kill -s "$name" "-$leader"
done &
signals=$!

# shellcheck source=/dev/null  # made for this guest: sets the parameters
. $place/command
# In a process of its own: opening a pipe waits for its other end, and the end of a child of ours
# would break that off.
(exec $busybox sh $place/start.sh $place "$@") <$place/in >$place/out 2>$place/err 3>&-
code=$?

kill $signals
# What the command left running ends with it: each process that is not of our session and is no
# kernel thread.
session_of() {
    read -r line 2>/dev/null <"/proc/$1/stat" || return
    # shellcheck disable=SC2086  # words
    set -- ${line##*) }
    echo "$4"
}
ours=$(session_of $$)
left=yes
while [ $left = yes ]; do
    left=no
    for process in /proc/[0-9]*; do
        process=${process#/proc/}
        session=$(session_of "$process")
        if [ "${session:-0}" != 0 ] && [ "$session" != "$ours" ] && kill -9 "$process"; then
            left=yes
        fi
    done
done 2>/dev/null
wait $output $errors

$busybox sync
$busybox mount -o remount,ro / 2>/dev/null
echo "exit $code" >&3
# The host ends the guest now.
$busybox sleep 60
$busybox poweroff -f
