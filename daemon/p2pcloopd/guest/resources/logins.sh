# shellcheck shell=dash
# A step of the first root: functions that bring the login of the image's own init to the console
# that the user sees. Nothing is written to the image: only device nodes, a tmpfs at /run, and files
# that are mounted over others differ.
#
# The console is tty1, where a PC shows it, and so do nearly all images. /dev/tty0 is the same. An
# image that has its login on /dev/console and on tty1 gets the first alone: two that read one
# terminal share its keys. One that has it elsewhere (a serial line) gets that as another name of
# the console. In QEMU the console is a serial line, which pc.sh has called tty1.

# shellcheck disable=SC2034  # hand-over.sh tells `kind`
# shellcheck disable=SC2154  # find_real sets `real`, choose_init sets `init` (programs.sh)

HIDDEN=15 # a terminal that leads nowhere, and that no image has a login on

# same_console NAME...: makes /dev/NAME the console.
same_console() {
    for device in "$@"; do
        case $device in */*) mkdir -p "/dev/${device%/*}" ;; esac
        rm -f "/dev/$device"
        # shellcheck disable=SC2086  # major and minor number
        mknod "/dev/$device" c $CONSOLE
    done
}

# hide NAME: makes /dev/NAME a terminal that leads nowhere.
hide() {
    rm -f "/dev/$1"
    mknod "/dev/$1" c 4 $HIDDEN
}

# has WORD LIST
has() {
    case " $2 " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

# show_one TTY...: where the image has its logins; makes one of them the console. A login on a serial
# line that guests do not have would fail again and again.
show_one() {
    onto=''
    for device in console tty0 tty vc/0; do
        ! has $device "$*" || onto=console
    done
    if [ -n "$onto" ]; then
        hide tty1
    elif has tty1 "$*"; then
        onto=tty1
    elif [ $# != 0 ]; then
        onto=$1
        same_console "$1"
    fi
    for device in "$@"; do
        case $device in
            "$onto") ;;
            tty[A-Z]* | hvc* | xvc*) [ -e "/dev/$device" ] || hide "$device" ;;
        esac
    done
}

has_login() {
    find_real /bin/login || find_real /usr/bin/login
}

# find_answer: sets `answer` to the options with which agetty asks for nothing. Debian's smallest
# roots have no login.
find_answer() {
    answer='--skip-login --login-program /bin/sh'
    ! has_login || answer='--autologin root'
}

# takes_passwords: whether an account has a password, as far as the image's own files tell.
takes_passwords() {
    if ! has_login; then
        LOCKED="$NO_LOGIN"
        return 1
    fi
    find_real /etc/shadow && shadow=/root$real || shadow=/dev/null
    find_real /etc/passwd || return 0
    awk -F: '
        FILENAME == ARGV[1] { hash[$1] = $2; next }
        {
            word = $2
            if (word == "x") word = ($1 in hash) ? hash[$1] : "*"
            if (word !~ /^[!*]/ && $7 !~ /(nologin|false|sync)$/) found = 1
        }
        END { exit !found }
    ' "$shadow" "/root$real"
}

WAY_IN="boot it with --autologin, or
p2pcloop: run commands with \`p2pcloop run\`"
LOCKED="root is locked in this image, and no other account has a password: $WAY_IN"
NO_LOGIN="this image has no program \`login\`: $WAY_IN"

say() {
    echo "p2pcloop: $*"
}

# question_stays: whether the login may ask; says so where there is no answer.
question_stays() {
    [ -z "$autologin" ] || return 1
    takes_passwords || say "$LOCKED"
}

# change_file FILE EDIT: mounts over FILE what sed makes of it, as long as the guest runs.
change_file() {
    changed=/changed-${1##*/}
    sed "$2" "$1" >"$changed"
    [ ! -x "$1" ] || chmod 755 "$changed"
    mount --bind "$changed" "$1"
}

# --- systemd ---

UNITS="/root/etc/systemd/system /root/usr/lib/systemd/system /root/lib/systemd/system"

# wants UNIT: whether a target wants it, and it is not masked.
wants() {
    masked=/root/etc/systemd/system/$1
    if [ -L "$masked" ] && [ "$(readlink "$masked")" = /dev/null ]; then return 1; fi
    for units in $UNITS; do
        for target in getty multi-user default graphical basic sysinit; do
            units_link=$units/$target.target.wants/$1
            if [ -e "$units_link" ] || [ -L "$units_link" ]; then return 0; fi
        done
    done
    return 1
}

# mask_serial_logins: systemd would wait a minute and a half for a line that guests do not have.
mask_serial_logins() {
    set +f
    for link in /root/etc/systemd/system/*.target.wants/serial-getty@*.service; do
        set -f
        unit=${link##*/} line=${link##*@}
        if [ ! -L "$link" ] || [ -e "/sys/class/tty/${line%.service}" ]; then continue; fi
        mount_run || return
        mkdir -p "$run/systemd/system"
        # A unit that is empty is one that is masked.
        : >"$run/systemd/system/$unit"
    done
    set -f
}

# drop_in UNIT TTY: gives a getty the user's kind of terminal, and answers its question or says
# above it that there is no answer.
drop_in() {
    mkdir -p "$run/systemd/system/$1.d"
    {
        echo '[Service]'
        [ "$TERM" = linux ] || echo "Environment=TERM=$TERM"
        [ -z "$notice" ] || echo "ExecStartPre=-/bin/cat /run/p2pcloop/notice"
        [ -z "$autologin" ] || printf '%s\n' ExecStart= \
            "ExecStart=-/sbin/agetty $answer --noclear --keep-baud $2 115200 $TERM"
    } >"$run/systemd/system/$1.d/zz-p2pcloop.conf"
}

# At a first boot the presets enable getty@tty1 (machine-id(5)).
is_first_boot() {
    find_real /etc/machine-id || return 0
    read -r id <"/root$real"
    [ "$id" = uninitialized ]
}

systemd_logins() {
    kind=systemd
    mask_serial_logins
    # systemd starts a login on each console that the kernel names.
    if [ -n "$SERIAL_CONSOLE" ] && mount_run; then
        mkdir -p "$run/systemd/system"
        : >"$run/systemd/system/serial-getty@$SERIAL_CONSOLE.service"
    fi
    if wants console-getty.service; then
        onto=console
        if wants getty@tty1.service && mount_run; then
            mkdir -p "$run/systemd/system"
            : >"$run/systemd/system/getty@tty1.service" # masked, too
        fi
    elif wants getty@tty1.service || is_first_boot; then
        onto=tty1
    elif mount_run; then
        onto=console
        mkdir -p "$run/systemd/system/getty.target.wants"
        ln -s /lib/systemd/system/console-getty.service "$run/systemd/system/getty.target.wants/"
    fi
    notice=''
    set +f
    if [ -z "$autologin" ] && ! takes_passwords &&
        ! grep -rqs -e autologin -e '/login -f' /root/etc/systemd/system/*getty*; then
        notice=yes
    fi
    set -f
    [ -n "$notice$autologin" ] || [ "$TERM" != linux ] || return 0
    if mount_run; then
        [ -z "$autologin" ] || find_answer
        mkdir -p "$run/p2pcloop"
        say "$LOCKED" >"$run/p2pcloop/notice"
        drop_in getty@tty1.service tty1
        drop_in console-getty.service console
    fi
}

# --- inittab: that of System V (id:levels:action:process) and of busybox (tty::action:process) ---

# logins_of TABLE: a line for each login: its number, its tty, its program, and whether that asks
# ("asks" or "open").
logins_of() {
    awk -F: '
        function tty_of(word) {
            sub(/^\/dev\//, "", word)
            if (word ~ /^(console|tty|tty[0-9]+|tty[A-Z]+[0-9]+|hvc[0-9]+|xvc[0-9]+|(vc|tts)\/[0-9]+)$/)
                return word
            return ""
        }
        /^[ \t]*#/ || NF < 4 { next }
        $3 == "initdefault" { level = $2; next }
        $3 !~ /^(respawn|askfirst|once|wait)$/ || $2 ~ /^[S0]+$/ { next }
        {
            process = $0
            sub(/^[^:]*:[^:]*:[^:]*:/, "", process)
            tty = $2 == "" ? tty_of($1) : ""
            count = split(process, words, /[ \t]+/)
            for (i = 2; i <= count; i++)
                if (tty_of(words[i]) != "") tty = tty_of(words[i])
            if (tty == "" && $1 $2 == "" && words[1] ~ /(sh|login|getty)$/) tty = "console"
            if (tty == "") next
            asks = process ~ /getty/ && process !~ /autologin| -a | -n / ? "asks" : "open"
            found[NR] = $2
            text[NR] = NR " " tty " " words[1] " " asks
        }
        END {
            for (n = 1; n <= NR; n++)
                if (n in found && (found[n] == "" || level == "" || index(found[n], level)))
                    print text[n]
        }
    ' "$1"
}

inittab_logins() {
    table=/root$real
    kind=inittab
    found=$(logins_of "$table")
    ttys=''
    while read -r _ tty _; do
        ttys="$ttys $tty"
    done <<END
$found
END
    # shellcheck disable=SC2086  # words
    show_one $ttys
    shown=no
    while [ $shown = no ] && read -r line; do
        case $onto/$line in
            "$onto"/[0-9]*" $onto "*) shown=yes ;;
            console/[0-9]*' tty '* | console/[0-9]*' tty0 '* | console/[0-9]*' vc/0 '*) shown=yes ;;
        esac
    done <<END
$found
END
    case $line in *' asks') ;; *) return ;; esac
    if question_stays; then return; fi
    # shellcheck disable=SC2086  # words
    set -- $line
    # It goes once init has read it: the image's own is there again to be changed.
    if find_real "$3" && [ "${real##*/}" = busybox ]; then
        program='/bin/login -f root'
        has_login || program=-/bin/sh
        new="s|^\([^:]*:[^:]*:[^:]*:\).*|$2::respawn:$program|"
        echo "::sysinit:/bin/umount /etc/inittab"
    else
        find_answer
        new="s|^\([^:]*:[^:]*:[^:]*:[^ 	]*\)|\1 $answer|"
        echo "p2pc::sysinit:/bin/umount /etc/inittab"
    fi >/inittab
    sed "$1$new" "$table" >>/inittab
    mount --bind /inittab "$table"
    autologin=answered
}

# --- runit ---

# A service that does nothing, in the place of one that is of no use here.
idle_service() {
    # shellcheck disable=SC2016  # the service expands it
    printf '#!/bin/sh\numount -l "$PWD/run"\nexec sleep 2147483647\n' >/idle
    chmod 755 /idle
    find_real "$1/run" && mount --bind /idle "/root$real"
}

runit_logins() {
    kind=runit
    for services in /etc/runit/runsvdir/current /etc/service /var/service /service; do
        ! find_real $services || break
    done
    services=$real ttys=''
    set +f
    for service in "/root$services"/*getty-*; do
        set -f
        tty=${service##*getty-}
        find_real "${service#/root}/run" || continue
        # Debian's takes the console that the kernel's command line names.
        if grep -qs 'console=.*cmdline' "/root$real"; then
            serial=${service#/root}
        else
            ttys="$ttys $tty"
        fi
    done
    set -f
    # shellcheck disable=SC2086  # words
    show_one $ttys
    if [ -n "$onto" ] && [ -n "$serial" ]; then idle_service "$serial"; fi
    [ -n "$onto" ] || [ -z "$serial" ] || onto=${serial##*getty-}
    find_real "$services/getty-$onto/run" || find_real "$services/agetty-$onto/run" || return
    ! grep -q autologin "/root$real" || return
    if question_stays; then return; fi
    service=/root$real
    find_answer
    change_file "$service" "/exec.*getty /s|getty |getty $answer |"
    autologin=answered
}
serial=''

# --- OpenRC's own init, and Finit ---

openrc_logins() {
    kind=openrc-init ttys=''
    set +f
    for service in /root/etc/runlevels/*/agetty.*; do
        ! find_real "${service#/root}" || ttys="$ttys ${service##*/agetty.}"
    done
    set -f
    # shellcheck disable=SC2086  # words
    show_one $ttys
    [ -n "$onto" ] || return
    if question_stays; then return; fi
    find_answer
    # The service of each terminal is a link to this one.
    find_real /etc/init.d/agetty || return
    change_file "/root$real" "s|^command_args_foreground=\"|&$answer |"
    autologin=answered
}

# Lines such as `tty [12345] /dev/tty1 linux noclear nowait` (finit.conf(5)).
finit_logins() {
    kind=finit ttys='' files=''
    set +f
    for file in /root/etc/finit.conf /root/etc/finit.d/*.conf; do
        find_real "${file#/root}" || continue
        while read -r word _ tty _; do
            [ "$word" = tty ] || continue
            tty=${tty#/dev/}
            ttys="$ttys $tty"
            files="$files $tty=$real"
        done <"/root$real"
    done
    set -f
    # shellcheck disable=SC2086  # words
    show_one $ttys
    case "$files " in *" $onto="*) ;; *) return ;; esac
    if question_stays; then return; fi
    find_answer
    getty="/sbin/agetty $answer --noclear $onto linux nowait"
    file=${files#*" $onto="}
    file=/root${file%% *}
    change_file "$file" "s|^\(tty *[^ ]* *\)/dev/$onto .*|\1$getty|"
    autologin=answered
}

# arrange_login: what the init of the root starts is shown.
arrange_login() {
    same_console tty0
    kind='' onto=''
    case $init in *sh) return ;; esac # it has the console for itself
    find_real "$init"
    case $real in
        */systemd)
            systemd_logins
            autologin=${autologin:+answered}
            ;;
        */runit-init | */runit) runit_logins ;;
        */openrc-init) openrc_logins ;;
        */finit) finit_logins ;;
        *) ! find_real /etc/inittab || inittab_logins ;;
    esac
    case $autologin in '' | answered) return ;; esac
    say "--autologin has found no login to answer here: use \`p2pcloop run\`, or" \
        "--append init=/bin/sh"
}
