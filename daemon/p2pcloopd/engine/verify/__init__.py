"""What is here is compared with its hashes: what is seeded, and files that lie elsewhere."""
