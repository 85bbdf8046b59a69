"""The fetch scheduler: what is wanted, where it may be had, and what is asked for next."""
