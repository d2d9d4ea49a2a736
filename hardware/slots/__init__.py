"""The system's slots: which version runs, which ones lie beside it, and how often each may still be tried.

    slots = systemd.Slots()            # or hardware.slots.fake.FakeSlots
    slots.standing()                   # what runs, what lies beside it, what each has left
    slots.refused(standing)            # versions that were tried and given up
    slots.install("1.3", folder)       # from parts that lie in `folder`

Two versions have room: the one that runs and one more. A new version has three boots; each one that nobody blesses
takes one away, and when none is left the boot loader takes the other version. `guard` keeps a blessing from the wrong
one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

TRIES = 3


class SlotError(OSError):
    """systemd's tools or the boot partition cannot be asked, or refuse. The message says what was said."""


@dataclass(frozen=True)
class Entry:
    """One version as the boot loader sees it."""

    version: str
    file: str  # its name, counters and all
    roothash: str = ""  # of its root file system, in hexadecimal
    tries_left: int | None = None  # None: it is not counted, so it was blessed (or came with the box)
    tries_done: int = 0

    @property
    def good(self) -> bool:
        return self.tries_left is None

    @property
    def bad(self) -> bool:
        """Every boot it had was used up."""
        return self.tries_left == 0


@dataclass(frozen=True)
class Standing:
    """`running` is the version of the system that runs; empty where that cannot be told."""

    running: str
    entries: tuple[Entry, ...] = ()
    complete: frozenset[str] = field(default_factory=frozenset)  # versions whose every part is on the disk
    selected: str = ""  # the boot entry that the firmware's variables say was booted

    def entry(self, version: str) -> Entry | None:
        return next((one for one in self.entries if one.version == version), None)

    @property
    def blessed(self) -> bool:
        """Whether the version that runs does so for good."""
        entry = self.entry(self.running)
        return entry is not None and entry.good

    @property
    def refused(self) -> tuple[str, ...]:
        """Versions that were given up: they lie there, and no boot of theirs is left."""
        return tuple(one.version for one in self.entries if one.bad and one.version != self.running)

    @property
    def fallback(self) -> str:
        """The version that comes back where the running one is given up; empty: there is none."""
        good = [one.version for one in self.entries if one.good and one.version != self.running]
        return good[0] if good else ""


class Slots(Protocol):
    """SlotError from each."""

    def standing(self) -> Standing: ...

    def install(self, version: str, folder: Path) -> None:
        """Write the parts in `folder` into the slot that does not run, and let the boot loader try it. What was
        written before is written again; a version that stands already is left as it is. The boot entry comes last: a
        power cut before it leaves what was."""
        ...

    def withdraw(self, version: str) -> None:
        """The boot loader tries this version no more. It must not be the one that runs."""
        ...

    def reject(self) -> None:
        """The version that runs, and is not blessed yet, is tried no more: the next restart takes the other one."""
        ...

    def capacity(self) -> int:
        """Bytes of the smaller slot for a root file system."""
        ...
