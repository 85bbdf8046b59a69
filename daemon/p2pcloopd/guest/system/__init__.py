"""What a guest is made of: the kernel and its words, the first root, libraries for LD_PRELOAD."""
