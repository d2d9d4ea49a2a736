"""Updates and the trainer. Nothing lives here yet; see README.md."""
