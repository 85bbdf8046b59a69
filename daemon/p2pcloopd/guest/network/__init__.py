"""A network for a guest without privilege: libslirp, forwarded ports, the filter of frames."""
