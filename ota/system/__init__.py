"""Updates of the operating system: what a release is, what it would mean, how it is installed. See README.md."""
