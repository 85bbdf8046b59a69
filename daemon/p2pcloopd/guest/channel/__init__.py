"""Commands in a guest that runs: a channel to its agent, and the operations that use it."""
