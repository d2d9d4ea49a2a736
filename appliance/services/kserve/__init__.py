"""The KServe v2 inference protocol over REST, with the binary tensor, system shared memory and repository extensions.

protocol   bytes to tensors and back: pure
regions    shared memory that clients registered
endpoint   what is asked at which path
"""
