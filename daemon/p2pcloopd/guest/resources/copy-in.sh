# shellcheck shell=dash
# Runs in a guest, by busybox: makes the file or directory $1 of what comes from standard input. $2
# is what comes: `file` its content, `directory` or `content` a tar file; `content` goes into $1
# itself where that is a directory, the others below it, as $3. A file without a name ($3) cannot go
# below a directory. $4 is the mode of a file, or of the directory; one that is there keeps its own.
# Exit codes: 3 if there is no directory for it, 4 if $1 is of the other kind.
# Behind SIZE bytes of a file ($5) standard input ends; fewer of them are an error. An empty SIZE is
# not known. Before a tar file come SIZE blocks of 4 KiB: the paths of its directories, each with a
# null byte behind it, and null bytes.
target=$1
if [ -d "$1" ]; then
    [ "$2" = content ] || [ -z "$3" ] || target=${1%/}/$3
else
    case $1 in
        */)
            [ "$2" != file ] || {
                echo "there is no directory $1" >&2
                exit 3
            }
            ;;
    esac
fi
parent=$(dirname -- "$target" && echo x)
parent=${parent%?x}
[ -d "$parent" ] || {
    echo "there is no directory $parent" >&2
    exit 3
}
if [ "$2" = file ]; then
    [ ! -d "$target" ] || {
        echo "$target is a directory" >&2
        exit 4
    }
    cat >"$target" || exit 1
    [ -z "$4" ] || chmod "$4" "$target" || exit 1
    [ -z "$5" ] || [ ! -f "$target" ] || [ "$(stat -L -c %s "$target")" = "$5" ] || {
        echo "$target is not complete" >&2
        exit 1
    }
else
    [ -d "$target" ] || { mkdir "$target" && chmod "$4" "$target"; } || exit 4
    cd "$target" || exit 4
    # tar would give directories that are there the permissions of the source.
    kept=/dev/.p2pcloop/kept.$$
    # shellcheck disable=SC2016  # the inner shell expands it
    dd bs=4096 count="$5" iflag=fullblock 2>/dev/null | xargs -0 -r sh -c 'for directory; do
        [ ! -d "$directory" ] || printf "%s\0%s\0" "$(stat -L -c %a "$directory")" "$directory"
    done' sh >$kept
    tar -xpf -
    code=$?
    xargs -0 -r -n 2 chmod <$kept
    rm $kept
    [ $code = 0 ] || exit 1
fi
# What was copied is durable when this has ended.
sync
