"""The commands that need trio or a guest, one file a command."""
