"""The library and the commands: formats, images, the store, sans-io protocols, the client.

Plain functions: no trio, no libtorrent; sockets only in the command line's control client.
"""

__version__ = "0.1.0"
