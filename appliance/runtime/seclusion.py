"""Keeps what is in a process's memory out of files: core dumps, swap, and other processes' hands."""

import ctypes
import logging
import resource

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def no_core_dumps() -> None:
    """For this process and what it starts. systemd-coredump, too, keeps nothing where the limit is 0."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def seclude() -> None:
    """For a process that is nothing but a vault: no core dump, no debugger of the same user, and no swap where the
    system allows so much locked memory."""
    no_core_dumps()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        log.warning("this process cannot be closed to debuggers")
    # A limit that later allocations would hit is worse than swap: all or nothing.
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY or libc.mlockall(
        _MCL_CURRENT | _MCL_FUTURE
    ):
        log.info("memory may be swapped: LimitMEMLOCK=infinity of the unit would keep it in place")
