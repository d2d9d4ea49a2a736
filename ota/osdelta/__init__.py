"""The difference between two images of a root file system, block by block: see README.md."""
