"""Millwright, the program on the box."""
