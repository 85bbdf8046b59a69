#!/bin/bash
# procps 4.0.2: ps, top and vmstat fail where the kernel's list of processors is a short one
#
# Package, version: procps 2:4.0.2-3, libproc2-0 2:4.0.2-3 (Debian 12)
# What one would expect: ps(1) lists processes, whatever /proc/cpuinfo holds. Its lines depend on
#   the architecture (proc_cpuinfo(5)), and kernels without a topology have no `core id`.
# What happens: libproc2 reads the list when it is asked for the system's boot time or ticks. A last
#   entry without a `core id` line and without an empty line behind it fails the call, and with it
#   `ps aux` (of which it asks for %CPU), top and vmstat. Any of the two lines is enough.
# Output seen:
#   core id, empty line: works
#   no core id, empty line: works
#   core id, no empty line: works
#   no core id, no empty line: vmstat: Unable to create system stat structure
# Why it matters: this is the list of a User-Mode Linux, of which `ps` alone works and `ps aux` does
#   not; the message names neither the file nor the line.
# Source: procps, library/stat.c: stat_cores_verify()
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq -o APT::Sandbox::User= procps=2:4.0.2-3 libproc2-0=2:4.0.2-3 || exit 2
for package in ./*.deb; do
    dpkg-deb -x "$package" root || exit 2
done
unshare --user --map-root-user --mount true || exit 2

# tried LINE...: what vmstat says where the list of processors has these lines.
tried() {
    printf '%b\n' 'processor\t: 0' 'bogomips\t: 4000.00' "$@" >cpuinfo
    # shellcheck disable=SC2016  # the inner shell's own
    if LD_LIBRARY_PATH=$(echo "$work"/root/usr/lib/*-linux-gnu) \
        unshare --user --map-root-user --mount sh -c \
        'mount --bind cpuinfo /proc/cpuinfo && exec "$@" >/dev/null 2>said' sh \
        root/usr/bin/vmstat; then
        echo works
    else
        tail -n 1 said
    fi
}
core='core id\t\t: 0'
seen="core id, empty line: $(tried "$core" '')
no core id, empty line: $(tried '')
core id, no empty line: $(tried "$core")
no core id, no empty line: $(tried)"
echo "$seen"
[ "$seen" = "core id, empty line: works
no core id, empty line: works
core id, no empty line: works
no core id, no empty line: vmstat: Unable to create system stat structure" ]
