# shellcheck shell=dash
# A step of the first root: functions that look at the init of the root at /root.

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
            target=$(readlink "/root$real/$name")
            case $target in /*) real='' ;; esac
            rest=$target${rest:+/$rest}
        elif [ -e "/root$real/$name" ]; then
            real=$real/$name
        else
            return 1
        fi
    done
}

# numbers FILE UNIT SKIP COUNT TYPE: COUNT units of UNIT bytes, as od writes them.
numbers() {
    dd if="$1" bs="$2" skip="$3" count="$4" 2>/dev/null | od -An -v -t"$5" -w56
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
    # Of an ELF file, the byte behind its magic tells 32 or 64 bits, and the last two the processor.
    case $(numbers "$program" 1 0 20 x1 | tr -d ' \n') in
        7f454c4602??????????????????????????3e00) check_loader "$2" ;;
        7f454c4601*) fail "$2 is a 32-bit program, and this kernel runs 64-bit ones alone" ;;
        7f454c46*) fail "$2 is a program for another kind of processor" ;;
        2321*)
            read -r line <"$program"
            # shellcheck disable=SC2086  # the first of its words
            set -- "$1" "$2" ${line#??}
            check_program "${3:-}" "${3:-} (which runs the script $1)"
            ;;
        *) fail "$2 is neither a program nor a script" ;;
    esac
}

# check_loader NAME: the interpreter that an ELF file asks for (PT_INTERP, elf(5)) must be there.
check_loader() {
    table=$(numbers "$program" 8 4 1 u8) entries=$(numbers "$program" 2 28 1 u2)
    [ $((entries)) -le 64 ] || fail "$1 is damaged"
    loader=$(
        numbers "$program" 8 $((table / 8)) $((entries * 7)) u8 |
            while read -r kind offset _ _ size _; do
                [ $((kind % 4294967296)) = 3 ] || continue
                dd if="$program" bs=1 skip="$offset" count=$((size - 1)) 2>/dev/null
            done
    )
    [ -z "$loader" ] || find_real "$loader" ||
        fail "$1 needs $loader, which its root does not have"
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
