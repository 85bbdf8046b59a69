"""Making layers: of image files in place, and of the differences between images."""
