# shellcheck shell=dash
# The agent: runs commands of the host in a guest that has an init of its own. It uses nothing of the
# image. busybox's shell finds busybox's programs at /proc/self/exe; this script is its descriptor 9,
# become.sh 7, and the driver of the ports 8: the files themselves are gone with the first root.
# p2pcloop/protocol/agent.py has the host's words. It ends by SIGTERM, when the init ends all
# processes.
#
#     agent.sh wait BELL     waits for a line at BELL, if there is one, then for the host's words
#     agent.sh serve INPUT OUTPUT ERRORS ID TOOLS WORD...   gives a command its streams
#     agent.sh start ID TOOLS WORD...            becomes the command
place=/dev/.p2pcloop

# wake SECONDS SLACK SEED HOSTNAME: has a guest that was resumed begin its random numbers anew; sets
# its clock, unless that differs by SLACK seconds at most; `-` for what stays as it is. Sets
# `woken`: by how many seconds the clock was behind, whether the kernel begins its random numbers
# anew by itself (where it has a driver of vmgenid), and how many connections lead nowhere now.
#
# Each process that begins has some hundred pages of memory fetched: there is one, to set the clock.
wake() {
    [ "$3" = - ] || echo "$3" >/dev/urandom
    # shellcheck disable=SC3028  # busybox's shell has it since 1.34
    behind=$(($1 - ${EPOCHSECONDS:-$(date +%s)}))
    if [ "$behind" -gt "$2" ] || [ "$behind" -lt "-$2" ]; then
        date -s "@$1" >/dev/null
    fi
    [ "$4" = - ] || echo "$4" >/proc/sys/kernel/hostname
    reseeds=no
    for device in /sys/bus/acpi/drivers/vmgenid/*:*; do
        [ ! -e "$device" ] || reseeds=yes
    done
    connections=0
    if has_sockets tcp || has_sockets tcp6; then
        # 01 is ESTABLISHED (tcp_states.h of Linux).
        connections=$(cat /proc/net/tcp /proc/net/tcp6 | awk '
            $4 == "01" && $3 !~ /^(0100007F|0000000000000000FFFF00000100007F|0{24}01000000):/ { n++ }
            END { print n + 0 }')
    fi
    woken="$behind $reseeds $connections"
}

# has_sockets NAME: whether the kernel's table has a line behind its heading.
has_sockets() {
    { read -r _ && read -r _; } <"/proc/net/$1"
}

# Each of the other two forms is a process of its own, started without `&`: see channel.sh.
case $1 in
    serve)
        input=$2 output=$3 errors=$4
        shift 4
        # No argument: a list of processes that the command prints must not end its output.
        read -r mark
        # Pipes stand between the ports and the command: a port can be opened only once, and a
        # program may open /dev/stderr anew.
        mkdir -p $place
        echo $$ >"$place/$1.streams"
        # They may come a moment later than the host's words.
        until [ -c "$errors" ]; do sleep 0.01; done
        # A write waits until the host's side is open: see below.
        { exec 4<>"$input" && echo >&4 && exec cat <&4; } | {
            {
                (exec sh /proc/self/fd/9 start "$@" 2>&6 5>&- 6>&-)
                code=$?
                trap '' PIPE
                printf %s%03d "$mark" $code
                printf %s%03d "$mark" $code >&6
            } 6>&1 >&5 5>&- | {
                # The host sends signals once the port is open. So the command has its number first.
                read -r _
                # It is there before it can be opened, as below; those before it can be already.
                until command exec 3>"$errors"; do sleep 0.01; done 2>/dev/null
                exec cat >&3 3>&- 5>&-
            }
        } 5>&1 | cat >"$output"
        exit
        ;;
    start)
        id=$2 tools=$3
        shift 3
        become=$(cat /proc/self/fd/7)
        # Programs find the guest's display, where it has one.
        # shellcheck source=/dev/null  # made for this guest
        [ ! -r $place/display ] || . $place/display
        # shellcheck disable=SC2016  # the inner shell expands it
        exec setsid sh -c 'echo $$ >"$1"; echo >&2; cd /root 2>/dev/null || cd / || exit; shift
            if [ "$1" = 1 ]; then shift 2; exec sh -c "$@" 7<&- 9<&-; fi
            become=$2; shift 2; exec 7<&- 9<&-; eval "$become"' sh "$place/$id" "$tools" "$become" "$@"
        ;;
esac

# The driver and its buffers are for guests that run commands: it waits until the host has one.
# It says that it listens: UML may lose what is typed earlier.
if [ -n "$2" ]; then
    exec 4<>"$2" && echo >&4 && read -r _ <&4
    exec 4>&-
fi
insmod /proc/self/fd/8
exec 8<&-
control=''
tries=0
# The device is there before it can be opened: the driver makes it first, and then knows it.
until [ -c "$control" ] && command exec 3<>"$control"; do
    tries=$((tries + 1))
    [ $tries -le 1000 ] || exit
    [ $tries = 1 ] || sleep 0.01
    # QEMU gives no port the number 0.
    for control in /dev/vport*p[01]; do
        break
    done
done 2>/dev/null
# The ports of this device: /dev/vport1p and a number.
base=${control%?}
# Linux's driver gives the end of a stream to who reads before the host's side is open. A write
# waits for that; the host drops it.
echo >&3

while IFS= read -r line <&3; do
    # shellcheck disable=SC2086  # words
    set -- $line
    case $1 in
        run)
            id=$2 input=$base$3 output=$base$4 errors=$base$5 mark=$6 tools=$7 count=$8
            set --
            while [ "$count" -gt 0 ] && IFS= read -r word <&3; do
                count=$((count - 1))
                case $word in
                    *\\*)
                        # The x keeps line feeds at the end.
                        word=$(printf %bx "$word")
                        word=${word%x}
                        ;;
                esac
                set -- "$@" "$word"
            done
            setsid setsid sh /proc/self/fd/9 serve "$input" "$output" "$errors" "$id" "$tools" \
                "$@" 3>&- <<END
$mark
END
            ;;
        wake)
            mark=$2 woken=
            wake "$3" "$4" "$5" "$6" 2>/dev/null
            echo "woken $mark $woken" >&3
            ;;
        kill)
            read -r leader <"$place/$2" && kill -s "$3" -- "-$leader"
            ;;
        end)
            # What the command has left behind may hold its streams open.
            read -r leader <"$place/$2.streams" && kill -s KILL -- "-$leader"
            rm -f "$place/$2" "$place/$2.streams"
            ;;
    esac
done
