"""Images as files: a file system of FUSE that shows the images a node knows."""
