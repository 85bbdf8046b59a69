#!/bin/bash
# QEMU, TCG: code that a vhost-user device loads over old code is not what runs
#
# Package, version: qemu-system-x86, qemu-system-common 1:7.2+dfsg-7+deb12u18+b3, seabios 1.16.2-1
#   (Debian 12)
# What one would expect: a boot sector reads the next one over the place where it began itself
#   (0x7c00, as every chain loader does), jumps there, and the new code runs: with a disk of QEMU's
#   own as with one of another process (vhost-user-blk).
# What happens: with the disk of another process, the old code runs once more. QEMU keeps what it
#   has translated of a page until the guest, or a device of QEMU, writes to that page. Writes of
#   another process into the shared memory are not noticed. Reads of data see the new bytes.
# Output seen:
#   disk of QEMU: new code
#   disk of another process: old code
# Why it matters: `-device vhost-user-blk` under TCG starts Linux by -kernel for months without
#   trouble; boot loaders, and guests that load programs over others, break in ways that look like
#   a damaged disk. KVM is not affected.
# Source: QEMU, docs/devel/multi-thread-tcg.rst ("Dirty code pages"), softmmu/physmem.c
set -euo pipefail
work=$(mktemp -d)
cleanup() {
    if [ -n "${daemon-}" ]; then kill "$daemon" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
version=1:7.2+dfsg-7+deb12u18+b3
closure=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances qemu-system-x86="$version" | grep '^[a-z]' | sort -u)
# Packages that only name others (virtual ones) cannot be downloaded; the next lines notice.
for package in $closure; do
    apt-get download -qq -o APT::Sandbox::User= "$package" 2>/dev/null || true
done
for package in ./*.deb; do
    dpkg-deb -x "$package" root || exit 2
done
dpkg-deb -f ./qemu-system-x86_*.deb Version | grep -qxF "$version" || exit 2
dpkg-deb -f ./seabios_*.deb Version | grep -qx 1.16.2-1 || exit 2
libraries=$(echo "$work"/root/{,usr/}lib/*-linux-gnu | tr ' ' :)
programs=$work/root/usr/bin

# The first sector copies itself to 0x600, goes on there (at 0x61c), reads the second one to 0x7c00
# and jumps to it. The second one has code at two places: at 0, where that jump leads, and at 0x1c,
# where the first one's code leads if it runs again: it copies the second one, as data, to 0x600.
# Port 0xe9 prints a letter, and port 0xf4 ends QEMU.
sector() { # CODE: 512 bytes that a BIOS boots
    # shellcheck disable=SC2059  # the code is a format
    printf "$1" >sector
    truncate -s 510 sector
    printf '\x55\xaa' >>sector
    cat sector
}
print_n='\xb0\x4e\xe6\xe9\xb0\x01\xe6\xf4\xf4\xeb\xfd'
print_o='\xb0\x4f\xe6\xe9\xb0\x01\xe6\xf4\xf4\xeb\xfd'
to_600='\xfa\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\xbe\x00\x7c\xbf\x00\x06\xb9\x00\x01\xf3\xa5'
read_second='\xfb\xb8\x01\x02\xb9\x02\x00\x30\xf6\xbb\x00\x7c\xcd\x13'
sector "$to_600"'\xea\x1c\x06\x00\x00'"$read_second"'\xea\x00\x7c\x00\x00' >disk.img
sector "$print_n$(printf '\\x00%.0s' {1..17})$print_o" >>disk.img
truncate -s 1M disk.img

# booted OPTION...: what runs, with a disk by these options.
booted() {
    LD_LIBRARY_PATH=$libraries timeout 120 "$programs/qemu-system-x86_64" -accel tcg -M pc -nodefaults \
        -display none -L root/usr/share/seabios -L root/usr/share/qemu \
        -object memory-backend-memfd,id=memory,size=64M,share=on -machine memory-backend=memory \
        -m 64 -chardev file,id=letters,path=letters -device isa-debugcon,iobase=0xe9,chardev=letters \
        -device isa-debug-exit,iobase=0xf4 "$@" >&2 || true
    case $(cat letters) in
        N) echo 'new code' ;;
        O) echo 'old code' ;;
        *) echo 'neither' ;;
    esac
}
LD_LIBRARY_PATH=$libraries "$programs/qemu-storage-daemon" --blockdev file,node-name=disk,filename=disk.img \
    --export vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path="$work/socket" &
daemon=$!
for _ in {1..600}; do
    if [ -S socket ]; then break; fi
    sleep 0.1
done
seen="disk of QEMU: $(booted -blockdev file,node-name=disk,filename=disk.img,read-only=on \
    -device virtio-blk-pci,drive=disk,bootindex=1)
disk of another process: $(booted -chardev socket,id=socket,path=socket \
    -device vhost-user-blk-pci,chardev=socket,bootindex=1)"
echo "$seen"
[ "$seen" = "disk of QEMU: new code
disk of another process: old code" ]
