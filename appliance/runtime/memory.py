"""What Python and the C library keep of memory longer than is good."""

import ctypes
import gc


def give_back() -> None:
    """What is free inside the C library's allocator goes to the system; glibc waits to be told. Takes about 1 ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def settle() -> None:
    """What was made so far stays: looking for garbage in it would hold everything up for 30 ms, now and then."""
    gc.collect()
    gc.freeze()
