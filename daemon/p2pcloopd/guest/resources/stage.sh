# shellcheck shell=dash
# Makes the mount namespace in which a sandbox is put together ready (guest/sandbox/staging.py), and
# goes on with a command. Usage, as `sh -c`, with $0 a busybox:
#
#     PLACE OWNER SIZE [KIND WHAT NAME]... -- COMMAND...
#
# PLACE gets a tmpfs of SIZE bytes. Each triple makes PLACE/NAME there: `tmpfs BYTES` an empty one
# that belongs to the user OWNER, `copy FILE` a file that all can read, `bind PATH` what is at PATH.
set -e
# The files of a tmpfs are counted: a million empty ones fill a machine's memory as well.
tmpfs_files=64

# When the machine's memory is short, the guest is ended before the user's other programs.
echo 500 >/proc/self/oom_score_adj || :
place=$1 owner=$2 size=$3
shift 3
"$0" mount -t tmpfs -o "mode=755,nr_inodes=1024,size=$size" p2pcloop "$place"
cd "$place"
while [ "$1" != -- ]; do
    case $1 in
        tmpfs)
            "$0" mkdir "$3"
            own=mode=700,uid=$owner,gid=$owner
            "$0" mount -t tmpfs -o "$own,nr_inodes=$tmpfs_files,size=$2" p2pcloop "$3"
            ;;
        copy)
            "$0" cat "$2" >"$3"
            "$0" chmod 555 "$3"
            ;;
        bind)
            if [ -d "$2" ]; then "$0" mkdir "$3"; else : >"$3"; fi
            "$0" mount -o rbind "$2" "$3"
            ;;
    esac
    shift 3
done
shift
cd /
exec "$@"
