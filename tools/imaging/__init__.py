"""The image: its builder, its keys, its application, and the machine it is tried on. `tools/image` calls it."""
