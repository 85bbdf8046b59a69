"""What a program can do with a node: find images, read, fetch and publish them."""
