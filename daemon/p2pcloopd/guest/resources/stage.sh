# shellcheck shell=dash
# Makes the mount namespace in which a sandbox is put together ready (guest/sandbox/staging.py), and
# goes on with a command. Usage, as `sh -c`, with $0 a busybox:
#
#     PLACE SIZE MOUNT TABLE [FILE NAME]... -- COMMAND...
#
# PLACE gets a tmpfs of SIZE bytes. Each pair makes PLACE/NAME there: a copy of FILE that all can
# read, an empty file if FILE is empty, or a device if it is `device MAJOR MINOR USER`. Then MOUNT,
# util-linux's, mounts all of TABLE (fstab(5)): each program that is started here delays the guest by
# a millisecond.
set -e

# When the machine's memory is short, the guest is ended before the user's other programs.
echo 500 >/proc/self/oom_score_adj || :
place=$1 size=$2 mount=$3 table=$4
shift 4
"$0" mount -t tmpfs -o "mode=755,nr_inodes=1024,size=$size" p2pcloop "$place"
cd "$place"
while [ "$1" != -- ]; do
    case $1 in
        '') : >"$2" ;;
        'device '*)
            numbers=${1#device }
            # shellcheck disable=SC2086  # words
            "$0" mknod -m 600 "$2" c ${numbers% *}
            "$0" chown "${numbers##* }" "$2"
            ;;
        *)
            "$0" cat "$1" >"$2"
            "$0" chmod 555 "$2"
            ;;
    esac
    shift 2
done
shift
if [ "$table" ]; then
    printf "%s\n" "$table" >fstab
    "$mount" --no-mtab --all --fstab "$place/fstab"
fi
cd /
exec "$@"
