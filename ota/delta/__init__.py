"""Differences between two versions of a model, bit-exact, applied in bounded memory. See README.md."""

import os

# Before numpy is imported: threads that wait for each other make small matrices ten times slower, and take memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
