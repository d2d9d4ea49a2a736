"""A certificate authority for boxes, as small as it can be: for tests and small sites."""
