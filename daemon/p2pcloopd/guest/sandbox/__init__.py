"""Processes that read a stranger's data run in bubblewrap, and see only what they need."""
