# shellcheck shell=dash
# An X server in its sandbox, and beside it the helper at the other end of the guest's wire, which
# connects to it. Usage, as `sh -c`, with $0 any word:
#
#     BUSYBOX INPUT HELPER [FD FILE]... -- SERVER...
#
# INPUT is the descriptor that becomes the server's standard input, HELPER the words of the helper's
# command. Each FILE is made of what is read from FD.
busybox=$1 input=$2 helper=$3
shift 3
while [ "$1" != -- ]; do
    "$busybox" cat <&"$1" >"$2"
    shift 2
done
shift
# The helper reads the guest's frames, and needs no socket of viewers.
eval "$helper $input</dev/null &"
exec "$@" <&"$input"
