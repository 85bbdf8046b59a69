"""HTTP: what a node serves, and the mirrors that it reads."""
