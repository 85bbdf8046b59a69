# shellcheck shell=dash
# Runs in a guest, by busybox: writes the file or directory $1 to standard output. A first line tells
# which of them it is, and the permissions of a file; then follows the content, or a tar file.
# Exit codes: 3 if there is no such file, 4 if it is neither.
real=$(readlink -f -- "$1" && echo x)
real=${real%?x}
if [ -d "$real" ]; then
    cd "$real" || exit
    echo directory
    exec tar -cf - .
elif [ -f "$real" ]; then
    # Opened first: what cannot be read must not look like an empty file.
    exec 3<"$real" || exit
    echo "file $(stat -c %a "$real")"
    exec cat <&3
elif [ -e "$real" ]; then
    echo "$1 is neither a file nor a directory" >&2
    exit 4
fi
echo "there is no $1" >&2
exit 3
