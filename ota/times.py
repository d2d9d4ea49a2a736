"""What time it is at least, for a box whose clock may be dead, wrong or turned back.

    now = max(clock, build time, floor + time since this process learned it)

The floor is raised by authenticated evidence alone: the time at which a role of the repository says it signed. It is
kept together with its witness, a name for the keys that said so. Where the root replaces those keys, what they said is
forgotten: a stolen key that signed for the year 2100 does not stop a fleet for ever.

What this cannot do: a box whose clock stands and that is started again and again, each time for less than the life of
a timestamp, can be held on the newest state it has seen. It can never be led back to an older one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from ota import durable
from ota.errors import StorageError

_LIMIT = 4096  # bytes of the file of the floor


class Times(Protocol):
    """Times are seconds since 1970, UTC. `witness` names the keys that sign timestamps at this moment."""

    def now(self, witness: str) -> float: ...

    def learn(self, at_s: float, witness: str) -> None:
        """It is `at_s` at least, says whoever holds the witness's keys."""
        ...


class Floor(Struct, frozen=True, forbid_unknown_fields=True):
    at_s: float
    witness: str


class StoredTimes:
    """The floor in a file. A file that cannot be read counts as none: the rollback state of the repository stays."""

    def __init__(
        self,
        file: Path,
        build_s: float,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._build, self._clock, self._elapsed = file, build_s, clock, elapsed
        self._floor = _read(file)
        self._at, self._since = self._floor.at_s if self._floor else 0.0, elapsed()  # the floor rises from here

    def now(self, witness: str) -> float:
        return max(self._clock(), self._build, self._standing(witness))

    def learn(self, at_s: float, witness: str) -> None:
        known = self._floor is not None and self._floor.witness == witness
        if not known or at_s > self._standing(witness):
            self._at, self._since = at_s, self._elapsed()
        if self._floor is None or not known or at_s > self._floor.at_s:
            # Also where this process has counted further already: the next one begins with what is written.
            self._floor = Floor(at_s, witness)
            durable.write(self._file, msgspec.json.encode(self._floor))

    def _standing(self, witness: str) -> float:
        if self._floor is None or self._floor.witness != witness:
            return 0.0
        return self._at + (self._elapsed() - self._since)  # in this order: no bit of what was learned is rounded away


def _read(file: Path) -> Floor | None:
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(_LIMIT), type=Floor)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}", "Give the right to read it.") from error
