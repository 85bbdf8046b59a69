# shellcheck shell=dash
# A step of the first root: functions that look at the init of the root at /root. Each process costs
# a millisecond of every boot, so they start few.

links_read=''
# read_link LINK: sets `target`. Most links are on the way to several files: it reads each once, and
# keeps `|LINK TARGET` in `links_read`.
read_link() {
    case $links_read in
        *"|$1 "*)
            target=${links_read#*"|$1 "}
            target=${target%%"|"*}
            return
            ;;
    esac
    target=$(readlink "$1")
    case $1$target in
        *[' |']*) ;; # such names would be mistaken there
        *) links_read="$links_read|$1 $target" ;;
    esac
}

# find_real PATH: sets `real` to where PATH leads, its links followed as from inside the root.
# Returns 1 where it leads nowhere; `real/name/rest` is then what is not there.
find_real() {
    rest=$1 real='' links=0
    while [ -n "$rest" ]; do
        name=${rest%%/*}
        case $rest in
            */*) rest=${rest#*/} ;;
            *) rest='' ;;
        esac
        case $name in
            '' | .) continue ;;
            ..)
                real=${real%/*}
                continue
                ;;
        esac
        if [ -L "/root$real/$name" ]; then
            links=$((links + 1))
            [ $links -le 40 ] || return 1
            read_link "/root$real/$name"
            case $target in /*) real='' ;; esac
            rest=$target${rest:+/$rest}
        elif [ -e "/root$real/$name" ]; then
            real=$real/$name
        else
            return 1
        fi
    done
}

# mount_run: a tmpfs at /run, as inits find it where an initramfs needed one; sets `run`.
mount_run() {
    [ -z "$run" ] || return 0
    find_real /run && [ "$real" = /run ] || return 1
    mount -t tmpfs -o mode=755,nosuid,nodev,size=20%,nr_inodes=800k tmpfs /root/run && run=/root/run
}
run=''

# numbers FILE SKIP SIZE: SIZE bytes of a file, as numbers of 4 bytes each.
numbers() {
    od -An -v -tu4 -j"$2" -N"$3" "$1"
}

# check_program PATH NAME: fails unless the kernel can start PATH; NAME is for messages.
check_program() {
    if ! find_real "$1"; then
        [ $links != 0 ] || fail "its root has no $2"
        [ $links -le 40 ] || fail "the links of $2 lead in a circle"
        fail "$2 leads to $real/$name${rest:+/$rest}, which its root does not have"
    fi
    program=/root$real
    [ -f "$program" ] || fail "$2 is no file"
    [ -x "$program" ] || fail "$2 is not executable"
    # shellcheck disable=SC2046  # words
    set -- "$1" "$2" $(numbers "$program" 0 64)
    case ${3:-0} in
        1179403647) ;; # an ELF file (elf(5))
        *)
            [ $((${3:-0} & 65535)) = 8483 ] || fail "$2 is neither a program nor a script"
            # Of a script, the first of its words behind `#!`.
            read -r line <"$program"
            # shellcheck disable=SC2086  # words
            set -- "$1" "$2" ${line#??}
            check_program "${3:-}" "${3:-} (which runs the script $1)"
            return
            ;;
    esac
    [ $(($4 & 255)) != 1 ] ||
        fail "$2 is a 32-bit program, and this kernel runs 64-bit ones alone"
    [ $(($7 >> 16)) = 62 ] || fail "$2 is a program for another kind of processor"
    check_loader "$2" "${11}" $((${17} & 65535))
}

# check_loader NAME TABLE ENTRIES: the interpreter that the ELF file `program` asks for must be there.
# Its program headers, of 56 bytes each, begin at byte TABLE; an interpreter's has type 3.
check_loader() {
    checked=$1 loader=''
    [ "$3" -le 64 ] || fail "$checked is damaged"
    # shellcheck disable=SC2046  # words
    set -- $(numbers "$program" "$2" $(($3 * 56)))
    while [ $# -ge 14 ]; do
        if [ "$1" = 3 ]; then
            loader=$(dd if="$program" bs=1 skip="$3" count=$(($9 - 1)) 2>/dev/null)
        fi
        shift 14
    done
    [ -z "$loader" ] || find_real "$loader" ||
        fail "$checked needs $loader, which its root does not have"
}

# choose_init: sets `init` where the kernel's command line names none, as the kernel chooses.
choose_init() {
    [ -z "$init" ] || return 0
    for candidate in /sbin/init /etc/init /bin/init /bin/sh; do
        if find_real $candidate; then
            init=$candidate
            return
        fi
    done
    case $(ls -A /root) in
        '' | lost+found) fail "its root file system is empty" ;;
    esac
    for volume in @rootfs @; do
        [ ! -d /root/$volume/etc ] || fail "its root has no /sbin/init, but a subvolume $volume:\
 try --append rootflags=subvol=$volume"
    done
    init=/sbin/init
}
