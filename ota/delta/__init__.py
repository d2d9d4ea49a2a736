"""Differences between two versions of a model, bit-exact, applied in bounded memory. See README.md."""
