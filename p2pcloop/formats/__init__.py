"""The formats of files and links: bytes in, checked values out, and back."""
