"""What a guest's kernel runs on: User-Mode Linux, which is one with its kernel, or QEMU."""
