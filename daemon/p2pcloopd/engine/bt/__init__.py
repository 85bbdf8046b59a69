"""BitTorrent by libtorrent. Only the modules session* import it."""
