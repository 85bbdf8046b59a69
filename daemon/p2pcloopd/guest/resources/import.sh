# shellcheck shell=dash
# A step of the guest that imports: applies the writable layer of a union file system, in which an
# image was changed elsewhere, to the image at /root. So overlayfs notes each change as it does for
# a program in a guest, whatever noted it before.
# KIND is what /dev/vdc holds: `tar`, or `files`, a file system. /dev/vde has an ext4 to work in; at
# its end it gets the answer, a line that guest/unseen/importing.py reads.
#
# What is deleted or replaced: of aufs `.wh.NAME` deletes NAME, `.wh..wh..opq` in a directory hides
# what the image has there, and the other names with `.wh..wh.` are aufs's own. Of overlayfs a
# character device 0:0 deletes, and an attribute that only a mount shows hides.
# shellcheck disable=SC2016  # the inner shells expand what is in single quotes

# complain WHAT: ends the guest; a program has told why in /lists/said.
complain() {
    read -r said </lists/said || said='no program told why'
    fail "$1: $said"
}

# tar_all OPTION...: GNU tar, which keeps owners, access lists and attributes.
tar_all() {
    host-tar --xattrs --xattrs-include='*' --acls --numeric-owner "$@"
}

# enter DIRECTORY
enter() {
    cd "$1" || fail "there is no directory $1"
}

# count LIST: how many names it has, each with a null byte behind it.
count() {
    tr -cd '\0' <"/lists/$1" | wc -c
}

# open_source: mounts what is imported; sets `top` to its directory.
open_source() {
    disk_is_there /dev/vdc
    disk_is_there /dev/vde
    mkdir /source /work
    mount -t ext4 /dev/vde /work || fail "there is no room to work in"
    # A million names are more than the guest has memory for.
    mkdir /work/lists
    ln -s work/lists /lists
    if [ "$KIND" = tar ]; then
        top=/work/source
        mkdir $top
        tar_all -C $top -xpf - </dev/vdc 2>/lists/said || complain "its files were not unpacked"
        return
    fi
    type=$(file_system_on /dev/vdc)
    case $type in
        '') fail "it holds no file system that is known" ;;
        ext4 | btrfs | xfs) options=rw module=$type ;;
        iso9660) options=ro module=isofs ;;
        *) options=ro module=$type ;;
    esac
    [ ! -e "/modules/$module.order" ] || load "$module"
    # Its journal is replayed, in an overlay that lasts as long as this guest.
    mount -t "$type" -o "$options" /dev/vdc /source ||
        mount -t "$type" -o "$(without_journal "$type")" /dev/vdc /source ||
        fail "its $type does not mount"
    top=/source
    # overlayfs needs a second directory beside the layer.
    for name in upper rw; do
        [ ! -d /source/work ] || [ ! -d "/source/$name" ] || top=/source/$name
    done
}

# list_source: writes the lists of what there is to do. In each a directory comes before what is in
# it.
list_source() {
    enter "$top"
    skipped='-path ./lost+found -prune'
    # shellcheck disable=SC2086  # words
    find . -name '.wh.*' -prune -o $skipped -o -type d -print0 >/lists/directories
    # shellcheck disable=SC2086  # words
    find . -name '.wh.*' -prune -o $skipped -o ! -type d ! -type c ! -type s -print0 >/lists/others
    # shellcheck disable=SC2086  # words
    find . -name '.wh.*' -prune -o $skipped -o -type c -print0 |
        xargs -0 -r sh -c 'for f; do
            if [ "$(stat -c %t:%T "$f")" = 0:0 ]; then printf "%s\0" "$f" >&3
            else printf "%s\0" "$f"; fi
        done' sh 3>/lists/deleted >>/lists/others
    find . -name '.wh..wh.*' -prune -o -name '.wh.*' -prune -print0 |
        xargs -0 -r sh -c 'for f; do
            name=${f##*/.wh.}
            case $name in "" | . | ..) ;; *) printf "%s/%s\0" "${f%/*}" "$name" ;; esac
        done' sh >>/lists/deleted
    find . -type d -name '.wh..wh.*' -prune -o -name '.wh..wh..opq' -print0 |
        xargs -0 -r sh -c 'for f; do printf "%s\0" "${f%/*}"; done' sh >/lists/opaque
    list_hiding
}

# list_hiding: adds the directories that overlayfs lets hide what lies below them: a file that a
# layer below has there does not show.
list_hiding() {
    mkdir /work/probe /merged
    enter /work/probe
    xargs -0 -r mkdir -p </lists/directories
    xargs -0 -r sh -c 'for d; do : >"$d/.p2pcloop"; done' sh </lists/directories
    looked=ro,redirect_dir=nofollow,metacopy=off,lowerdir=$top:/work/probe
    mount -t overlay -o "$looked" overlay /merged || fail "its files cannot be looked at"
    enter /merged
    # overlayfs refuses what is nothing without the image that it was made on.
    find . >/dev/null 2>/lists/said ||
        complain "it was changed with redirect_dir or metacopy of overlayfs"
    xargs -0 -r sh -c 'for d; do [ -e "$d/.p2pcloop" ] || printf "%s\0" "$d"; done' sh \
        </lists/directories >>/lists/opaque
    enter /
    umount /merged
}

# make_directories: what is a directory in the source becomes one, also where the image has a link.
make_directories() {
    xargs -0 -r sh -c 'for d; do
        [ -d "$d" ] && [ ! -L "$d" ] || { rm -rf "$d" && mkdir -p "$d"; } || exit 255
    done' sh </lists/directories 2>/lists/said || complain "a directory cannot be made"
}

# apply_source: each name below has real directories above it, so no link leads elsewhere.
apply_source() {
    enter /root
    make_directories
    xargs -0 -r sh -c 'for d; do
        if [ "$d" = . ]; then find . -mindepth 1 -maxdepth 1 -exec rm -rf {} +
        else rm -rf "$d" && mkdir -p "$d"; fi || exit 255
    done' sh </lists/opaque 2>/lists/said || complain "a directory cannot be replaced"
    make_directories
    xargs -0 -r rm -rf </lists/deleted 2>/lists/said || complain "a file cannot be deleted"
    xargs -0 -r sh -c 'for f; do [ -L "$f" ] || [ ! -d "$f" ] || rm -rf "$f"; done' sh \
        </lists/others 2>/lists/said || complain "a directory cannot be replaced"
    # The root itself keeps the owner and the mode that the image gives it.
    { tail -c +3 /lists/directories && cat /lists/others; } >/lists/content
    enter "$top"
    : >/lists/said
    {
        tar_all --xattrs-exclude='trusted.*' --sparse --null --no-recursion -T /lists/content \
            -cf - 2>/lists/said || : >/lists/failed
    } | tar_all -C /root -xpf - 2>/lists/written || {
        mv /lists/written /lists/said
        complain "its files cannot be written"
    }
    [ ! -e /lists/failed ] || complain "its files cannot be read"
}

open_source
list_source
apply_source
enter /
umount /root || fail "the root is in use"
[ "$KIND" = tar ] || umount /source
answer="files $(count others) directories $(count directories)"
answer="$answer deleted $(count deleted) replaced $(count opaque)"
umount /work || fail "the place to work in is in use"
echo "$answer" | dd of=/dev/vde bs=4096 conv=sync 2>/dev/null
close_overlay
