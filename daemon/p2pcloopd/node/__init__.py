"""The node: one process for one home. It serves the control socket out of the engine's torrents."""
