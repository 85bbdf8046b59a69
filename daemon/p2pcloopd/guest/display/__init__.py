"""The display of a guest: an X server on this machine, and the guest's way to it."""
