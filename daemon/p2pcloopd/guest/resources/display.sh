# shellcheck shell=dash
# An X server in its sandbox, and beside it the helper at the other end of the guest's wire, which
# connects to it. Usage, as `sh -c`: INPUT HELPER SERVER..., with INPUT the descriptor that becomes
# the server's standard input, and HELPER the words of the helper's command.
input=$1 helper=$2
shift 2
# The helper reads the guest's frames, and needs no socket of viewers.
eval "$helper $input</dev/null &"
exec "$@" <&"$input"
