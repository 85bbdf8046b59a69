"""The command line: one module a command, their options, their output."""
