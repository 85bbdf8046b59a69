"""Guests without a console: they look into file systems, or change a files overlay."""
