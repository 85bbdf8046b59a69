# shellcheck shell=dash
# Usage: become.sh NAME ARGUMENT... Becomes the image's program of that name. busybox's shell looks
# among its own programs first, also where `env` starts one; it does not where it is given a path.
name=$1
shift
case $name in
    */*) program=$name ;;
    *)
        program=''
        for directory in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
            [ -f "$directory/$name" ] || continue
            program=$directory/$name
            [ ! -x "$program" ] || break
        done
        ;;
esac
if [ -z "$program" ]; then
    echo "$name: not found" >&2
    exit 127
fi
unset PWD OLDPWD SHLVL
# shellcheck disable=SC3038  # busybox's exec has -a
exec -a "$name" -- "$program" "$@"
