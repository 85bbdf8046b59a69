"""The block server: one process per guest, vhost-user-blk and NBD over one device."""
