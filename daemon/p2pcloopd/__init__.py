"""When the bytes of p2pcloop move: the node, the block server and the guest, as trio processes."""
