#!/bin/sh
# Makes image.cloop of root.tar, if that is here, else of the directory root.
set -eu
if [ -e root.tar ]; then
    mkdir root
    tar -xf root.tar -C root --numeric-owner --exclude='./dev/*'
fi
mke2fs -q -t ext4 -m 0 -E root_owner=0:0 -d root image 256M
rm -rf root
create_compressed_fs -B 65536 -L 1 -t 2 image image.cloop
