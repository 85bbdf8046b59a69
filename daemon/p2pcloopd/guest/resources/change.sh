# shellcheck shell=dash
# A step of the guest that changes a files overlay. /drop has the paths that leave it; /adopt has
# owner, mode and path of each directory that gets other ones. Each item ends with a null byte.
cd /changes/upper || fail "the overlay has no files"
xargs -0 -r rm -rf </drop || fail "files of the overlay cannot be dropped"
# shellcheck disable=SC2016  # the inner shell expands them
xargs -0 -r -n 3 sh -c 'chown -h "$1" "$3" && chmod "$2" "$3"' sh </adopt ||
    fail "directories of the overlay cannot be changed"
close_overlay
