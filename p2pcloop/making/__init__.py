"""Making layers: of files as they lie, and of what differs between images."""
