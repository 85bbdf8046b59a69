"""Finding the newest record of a name: mirrors, the LAN, the DHT."""
