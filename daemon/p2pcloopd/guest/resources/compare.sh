# shellcheck shell=dash
# A step of the guest that compares: tells, as a tar file on /dev/vdd, what the overlay hides of the
# new image on /dev/vda and of the old one on /dev/vdc, and what it has in common with each.
# p2pcloop/making/rebase.py reads it.
# shellcheck disable=SC2016  # the inner shells expand what is in single quotes
disk_is_there /dev/vdc
disk_is_there /dev/vdd

# enter DIRECTORY
enter() {
    cd "$1" || fail "there is no directory $1"
}

# open_image NAME DISK PLACE...: joins the layers of an image at /NAME, as a guest of this image has
# them below its overlay.
open_image() {
    mkdir "/$1"
    view=/$1 device_of_image=$2
    shift 2
    mount_layers "/layers$view" "$device_of_image" "$@"
    # shellcheck disable=SC2154  # mount_layers sets `layers`
    case $layers in
        *:*) mount -t overlay -o "ro,lowerdir=$layers" overlay "$view" ;;
        *) mount -o bind "$layers" "$view" ;;
    esac || fail "the layers of an image cannot be joined"
}
# shellcheck disable=SC2086  # one word a place
open_image new /dev/vda $NEW_PLACES
# shellcheck disable=SC2086  # one word a place
open_image old /dev/vdc $OLD_PLACES

# Paths begin with .// and have no other double slash: so they end where the next one begins.
cd /changes/upper || fail "the overlay has no files"
find .// -type d -print0 >/lists/directories
find .// ! -type d -print0 >/lists/others

# A directory hides what lies below it if a file of a layer below does not show through.
mkdir /probe /merged
mount -t tmpfs probe /probe
enter /probe
xargs -0 -r mkdir -p </lists/directories
xargs -0 -r sh -c 'for d; do : > "$d/.p2pcloop"; done' sh </lists/directories
mount -t overlay -o ro,lowerdir=/changes/upper:/probe overlay /merged ||
    fail "the overlay's files cannot be looked at"
enter /merged
xargs -0 -r sh -c 'for d; do [ -e "$d/.p2pcloop" ] || printf "%s\0" "$d"; done' sh \
    </lists/directories >/lists/opaque
enter /
umount /merged

# What the overlay hides of an image, all of it; and what it has in common with it.
for image in old new; do
    enter /$image
    cat /lists/others /lists/opaque |
        xargs -0 -r sh -c 'find "$@" -print0 2>/dev/null' sh >/lists/$image
    xargs -0 -r sh -c 'find "$@" -maxdepth 0 -print0 2>/dev/null' sh \
        </lists/directories >>/lists/$image
done

# describe DIRECTORY NAME LIST: writes NAME.stat and NAME.hash of what there is of the list.
describe() {
    enter "$1"
    xargs -0 -r stat -c '%f %u %g %t %T %s %n' <"$3" >"/lists/$2.stat" 2>/dev/null
    : >/lists/regular
    xargs -0 -r sh -c 'for f; do
        if [ -L "$f" ]; then
            hash=$(readlink -n "$f" | sha256sum)
            printf "%s  %s\n" "${hash%% *}" "$f"
        elif [ -f "$f" ]; then
            printf "%s\0" "$f" >&3
        fi
    done' sh <"$3" >"/lists/$2.hash" 3>/lists/regular
    xargs -0 -r sha256sum </lists/regular >>"/lists/$2.hash"
}
describe /old old /lists/old
describe /new new /lists/new
# Of its own files, those that may be what the new image has, too.
describe /changes/upper upper /lists/new
cd /changes/upper || fail "the overlay has no files"
cat /lists/directories /lists/others |
    xargs -0 -r stat -c '%f %u %g %t %T %s %n' >/lists/upper.stat
enter /lists
tar -cf - opaque old.stat old.hash new.stat new.hash upper.stat upper.hash >/dev/vdd ||
    fail "the answer has no room"
close_overlay
