"""Shared memory that clients registered: POSIX shared memory of this machine, opened by its name.

It is read and written by calls, never mapped: a client that cuts its memory short gets an error for it, where a mapping
would end this process. A name leads to a file of /dev/shm itself and nowhere else.
"""

import os
import re
import stat
import threading
from pathlib import Path
from typing import NamedTuple

from appliance.errors import RequestError

ROOM = Path("/dev/shm")
MOST = 256  # regions
LARGEST = 1 << 30  # bytes of one

_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.\-]{0,250})")


class _Region(NamedTuple):
    descriptor: int
    writable: bool
    key: str
    offset: int
    size: int


class Regions:
    """Regions by the names that clients gave them. Safe from several threads."""

    def __init__(self, room: Path = ROOM) -> None:
        self._room = room
        self._known: dict[str, _Region] = {}
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """`key` as in shm_open(3). RequestError where there is no such memory, or less of it."""
        region = _opened(self._room, key, offset, size)
        with self._lock:
            problem = ""
            if name in self._known:
                problem = f"the region '{name}' is registered already"
            elif len(self._known) >= MOST:
                problem = f"{MOST} regions are registered already"
            else:
                self._known[name] = region
        if problem:
            os.close(region.descriptor)
            raise RequestError(400, problem, "Unregister it first.")

    def unregister(self, name: str | None = None) -> None:
        """One, or all. What is not registered is not: that is no error."""
        with self._lock:
            for gone in list(self._known) if name is None else [name]:
                if region := self._known.pop(gone, None):
                    os.close(region.descriptor)

    def status(self, name: str | None = None) -> list[dict[str, object]]:
        with self._lock:
            if name is not None and name not in self._known:
                raise RequestError(404, f"there is no region '{name}'", "Register it first.")
            return [
                {"name": one, "key": region.key, "offset": region.offset, "byte_size": region.size}
                for one, region in self._known.items()
                if name in (None, one)
            ]

    def read(self, name: str, offset: int, size: int) -> bytearray:
        with self._lock:
            region = self._region(name, offset, size)
            data = bytearray(size)
            taken = _read_all(region.descriptor, memoryview(data), region.offset + offset)
        if taken < size:
            raise RequestError(400, f"the memory of region '{name}' was cut short")
        return data

    def write(self, name: str, offset: int, data: memoryview) -> None:
        with self._lock:
            region = self._region(name, offset, len(data))
            if not region.writable:
                raise RequestError(400, f"the memory of region '{name}' may not be written")
            # Writing beyond the end would make the memory grow.
            if os.fstat(region.descriptor).st_size < region.offset + offset + len(data):
                raise RequestError(400, f"the memory of region '{name}' was cut short")
            written = 0
            while written < len(data):
                written += os.pwrite(region.descriptor, data[written:], region.offset + offset + written)

    def _region(self, name: str, offset: int, size: int) -> _Region:
        region = self._known.get(name)
        if region is None:
            raise RequestError(400, f"there is no region '{name[:100]}'", "Register it first.")
        if offset + size > region.size:
            raise RequestError(400, f"region '{name}' has {region.size} bytes, {offset + size} are asked for")
        return region


def read_once(key: str, offset: int, size: int, room: Path = ROOM) -> bytearray:
    """Bytes of shared memory that nobody registered. RequestError as in `register`."""
    region = _opened(room, key, offset, size)
    try:
        data = bytearray(size)
        if _read_all(region.descriptor, memoryview(data), offset) < size:
            raise RequestError(400, f"the shared memory '{key}' was cut short")
        return data
    finally:
        os.close(region.descriptor)


def write_once(key: str, offset: int, data: memoryview, room: Path = ROOM) -> None:
    region = _opened(room, key, offset, len(data))
    try:
        if not region.writable:
            raise RequestError(400, f"the shared memory '{key}' may not be written")
        written = 0
        while written < len(data):
            written += os.pwrite(region.descriptor, data[written:], offset + written)
    finally:
        os.close(region.descriptor)


def _read_all(descriptor: int, target: memoryview, offset: int) -> int:
    taken = 0
    while taken < len(target):
        count = os.preadv(descriptor, [target[taken:]], offset + taken)
        if not count:
            break
        taken += count
    return taken


def _opened(room: Path, key: str, offset: int, size: int) -> _Region:
    named = _KEY.fullmatch(key)
    if not named:
        raise RequestError(400, f"'{key[:80]}' is no name of shared memory", "Name it as shm_open does: /name.")
    path, flags = room / named[1], os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    writable = True
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags)
        except PermissionError:
            descriptor, writable = os.open(path, os.O_RDONLY | flags), False
    except OSError as error:
        raise RequestError(
            400, f"the shared memory '{key}' cannot be opened: {error.strerror}", "Create it before it is named."
        ) from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or size > LARGEST or facts.st_size < offset + size:
        os.close(descriptor)
        raise RequestError(400, f"the shared memory '{key}' has {facts.st_size} bytes, {offset + size} are asked for")
    return _Region(descriptor, writable, key, offset, size)
