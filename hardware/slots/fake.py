"""Slots in memory, with a boot loader and firmware that behave like the real ones: for tests of whoever updates."""

from dataclasses import replace
from pathlib import Path

from hardware.slots import TRIES, Entry, SlotError, Standing, naming


class FakeSlots:
    """Two slots. `boot()` is a restart: `healthy` says whether a version comes up and is blessed, `refused` whether the
    firmware does not even start it."""

    def __init__(self, running: str = "1.1", slot_bytes: int = 1 << 30) -> None:
        self._running, self._slot_bytes = running, slot_bytes
        self._entries = {running: Entry(running, f"millwright_{running}.efi")}
        self._complete = {running}
        self.cut_before_entry = False  # the power goes before the boot entry is written

    def standing(self) -> Standing:
        entries = sorted(self._entries.values(), key=lambda one: (not one.bad, naming.order(one.version)), reverse=True)
        return Standing(self._running, tuple(entries), frozenset(self._complete), f"millwright_{self._running}.efi")

    def install(self, version: str, folder: Path) -> None:
        if version in self._complete:
            return
        if not any(version in path.name for path in folder.iterdir()):
            raise SlotError(f"no part of {version} is in {folder}")
        for other in set(self._entries) - {self._running, version}:
            del self._entries[other]
            self._complete.discard(other)
        if self.cut_before_entry:
            return
        self._entries[version] = Entry(version, f"millwright_{version}+{TRIES}-0.efi", "", TRIES, 0)
        self._complete.add(version)

    def withdraw(self, version: str) -> None:
        if version == self._running:
            raise SlotError(f"{version} is the version that runs")
        self._entries.pop(version, None)
        self._complete.discard(version)

    def reject(self) -> None:
        entry = self._entries[self._running]
        if entry.tries_left is None:
            raise SlotError(f"{self._running} was blessed")
        self._entries[self._running] = replace(entry, tries_left=0)

    def capacity(self) -> int:
        return self._slot_bytes

    def bless(self) -> None:
        entry = self._entries[self._running]
        self._entries[self._running] = replace(entry, tries_left=None, tries_done=0)

    def boot(self, broken: frozenset[str] = frozenset()) -> str:
        """Boot until a version comes up, counting as the boot loader does; its version."""
        while True:
            entry = self.standing().entries[0]
            if entry.tries_left is not None:
                left, done = max(entry.tries_left - 1, 0), entry.tries_done + 1
                name = f"millwright_{entry.version}+{left}-{done}.efi"
                self._entries[entry.version] = replace(entry, file=name, tries_left=left, tries_done=done)
            if entry.version not in broken:
                self._running = entry.version
                return entry.version
