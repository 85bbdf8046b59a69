"""A guest's console: its terminal, keys, what it prints, and who follows it."""
