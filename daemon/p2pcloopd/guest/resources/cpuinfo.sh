# shellcheck shell=dash
# A step of the first root: gives /proc/cpuinfo what UML's kernel leaves out, a `core id` for each
# processor and an empty line at the end. Without them ps, top and vmstat of procps 4.0.2 (Debian 12)
# fail. The mended copy goes to the image's root together with /proc; nothing is written to the image.
if ! grep -q '^core id' /proc/cpuinfo; then
    umask 0333 # read-only, as the original
    sed -e 's/^processor\([[:blank:]]*:.*\)/&\ncore id\1/' -e '$!b' -e '/./G' /proc/cpuinfo >/cpuinfo
    umask 0022
    mount --bind /cpuinfo /proc/cpuinfo || fail "/proc/cpuinfo cannot be mended"
fi
