"""User-Mode Linux as the guest: its kernel, initramfs, sandbox, network and console."""
