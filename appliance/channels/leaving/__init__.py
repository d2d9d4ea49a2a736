"""What all destinations share: what leaves, how it is masked, how fast, and in which envelope. Pure."""
