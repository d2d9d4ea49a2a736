"""The route that was decided on, in a file: an update goes on without the network."""

from pathlib import Path

import msgspec
from msgspec import Struct

from ota import durable
from ota.fetch import Wanted
from ota.manifest import Keys

MAX_BYTES = 64 << 10


class Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    """How a file of a route opens: its key, wrapped, and what it is the file of."""

    keys: Keys
    context: bytes


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a route, as it is remembered."""

    bundle: str
    place: str
    digest: str
    length: int
    algorithm: str
    unpacked_bytes: int
    base: str | None = None
    sealed: Sealed | None = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.digest, self.length, self.algorithm)


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    stops: tuple[Stop, ...]
    avoid: tuple[str, ...] = ()  # hashes of deltas that did not work here


def recall(file: Path) -> Plan:
    """One that is not there, or cannot be read, is decided again."""
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(MAX_BYTES), type=Plan)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return Plan(())


def record(file: Path, decided: Plan) -> None:
    """StorageError."""
    durable.write(file, msgspec.json.encode(decided))
