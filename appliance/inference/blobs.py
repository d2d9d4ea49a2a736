"""What was compiled for a device, kept on disk so that the next start does not compile it again.

A blob is found by everything it depends on: the model's content, the device, its driver and firmware, the runtime's
version, how it was compiled and for which shapes. It is sealed by a digest; one that does not agree is deleted and made
anew. Beyond the budget the ones that were not used for longest go. A disk that refuses costs time, never an inference.
"""

import hashlib
import logging
import os
import time
from pathlib import Path

from appliance.errors import DamagedError, StoreError
from appliance.runtime import files

log = logging.getLogger(__name__)

LARGEST = 2 << 30  # bytes of one blob
ABANDONED_S = 3600  # a temporary file of this age is of a write that was cut off


class Blobs:
    """`identity` is what all blobs of one model on one device share; `budget` in bytes is for the whole folder."""

    def __init__(self, folder: Path, budget: int, identity: str) -> None:
        self._folder, self._budget = folder, budget
        self._prefix = _hash(identity)[:20]
        self._identity = identity

    def get(self, key: str) -> bytes | None:
        """None where there is none that can be trusted."""
        path, head = self._path(key), self._head(key)
        try:
            held = files.read_sealed(path, LARGEST)
            if held is None:
                return None
            if not held.startswith(head):
                raise DamagedError(f"{path} is of another model or device")
            os.utime(path)
        except DamagedError as error:
            log.warning("%s: it is deleted and made anew", error.message)
            path.unlink(missing_ok=True)
            return None
        except (StoreError, OSError) as error:
            log.warning("a compiled model cannot be read: %s", error)
            return None
        return held[len(head) :]

    def put(self, key: str, data: bytes) -> None:
        head = self._head(key)
        if len(head) + len(data) > min(self._budget, LARGEST):
            return
        try:
            files.write_sealed(self._path(key), head + data)
            self._prune()
        except (StoreError, OSError) as error:
            log.warning("a compiled model cannot be kept: %s", error)

    def forget(self) -> int:
        """Delete all blobs of this identity; how many there were."""
        found = list(self._folder.glob(f"{self._prefix}-*.blob"))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _path(self, key: str) -> Path:
        return self._folder / f"{self._prefix}-{_hash(key)[:32]}.blob"

    def _head(self, key: str) -> bytes:
        return f"{self._identity}\n{key}\0".encode()

    def _prune(self) -> None:
        for path in self._folder.glob(".*.new"):
            if path.stat().st_mtime < time.time() - ABANDONED_S:
                path.unlink(missing_ok=True)
        kept = sorted(((path.stat(), path) for path in self._folder.glob("*.blob")), key=lambda pair: pair[0].st_mtime)
        excess = sum(facts.st_size for facts, _ in kept) - self._budget
        for facts, path in kept:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= facts.st_size


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
