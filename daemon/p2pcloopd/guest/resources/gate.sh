# shellcheck shell=dash
# Runs a command in a sandbox only if its starter, at the other end of standard input, is still
# there. Usage, as `sh -c`: PROCESSES COMMAND...
#
# bubblewrap ties the sandbox's life to the starter's late in its start: without the gate, a sandbox
# whose starter was killed before that would stay for ever. Here the gate then reads an end of file,
# and ends. Processes are counted from here on, where a user namespace counts the sandbox's alone.
# Until here standard error has bubblewrap's complaints; the command's goes to its output.

# shellcheck disable=SC3045  # busybox's ulimit has -u
ulimit -u "$1" && shift && echo >&0 && read -r _ && exec "$@" </dev/null 2>&1
