"""Formats that both the way in and the way out speak: pure, no I/O, no clock. See README.md."""
