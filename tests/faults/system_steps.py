"""Installs a system; `abrupt` ends it at one of its steps.

The updater is the real one, and takes the release in the folder OUT. Slots, their boot loader and the vault are in
BOX/disk, and each change of one of them is a rename: done or undone.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

from hardware.slots.fake import FakeSlots
from ota.sources import Repository
from ota.system import release as releases
from ota.system.book import Slot
from ota.system.plan import Facts
from ota.system.updater import Parts, Updater

NAME, OLD, NEW = "millwright-x86-64", "1.1", "1.2"
ROOM = 1 << 40


class Disk:
    """`Slots` and `Vault` of `ota.system.updater`. `vault`: the values that it opens for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def vault(self) -> str:
        path = self._folder / "vault"
        return path.read_text() if path.exists() else "old"

    def slot(self, version: str) -> Slot:
        standing = self._slots().standing()
        entry = standing.entry(version)
        return Slot(standing.running, standing.blessed, entry is not None, entry is not None and entry.bad)

    def install(self, version: str, folder: Path) -> None:
        slots = self._slots()
        slots.install(version, folder)
        self._keep("slots", pickle.dumps(slots))

    def withdraw(self, version: str) -> None:
        slots = self._slots()
        slots.withdraw(version)
        self._keep("slots", pickle.dumps(slots))

    def allow(self, pcr11: Mapping[str, str]) -> None:
        self._keep("vault", b"old and new")

    def commit(self) -> None:
        self._keep("vault", b"new" if self._slots().standing().running == NEW else b"old")

    def restart(self, broken: frozenset[str]) -> str:
        """And what comes up is blessed; its version."""
        slots = self._slots()
        version = slots.boot(broken)
        slots.bless()
        self._keep("slots", pickle.dumps(slots))
        return version

    def _slots(self) -> FakeSlots:
        path = self._folder / "slots"
        found = pickle.loads(path.read_bytes()) if path.exists() else FakeSlots(OLD)
        assert isinstance(found, FakeSlots)
        return found

    def _keep(self, name: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{name}"
        draft.write_bytes(content)
        draft.replace(self._folder / name)


def updater(box: Path, out: Path) -> Updater:
    disk, nowhere = Disk(box / "disk"), box / "nowhere"
    return Updater(box / "os", Parts(Repository.within(out).files, disk, disk, nowhere, nowhere))


def play(box: Path | str, out: Path | str) -> Updater:
    """Up to the restart."""
    box, out = Path(box), Path(out)
    working = updater(box, out)
    release = working.begin((out / f"{NAME}-{NEW}.image").read_bytes(), OLD, 1)
    working.carry_on(facts(release), lambda: 2)
    return working


def facts(release: releases.Release) -> Facts:
    """Of a box that has room, and nothing to start a difference from."""
    return Facts(
        running=OLD,
        architecture=release.architecture,
        blessed=True,
        complete=True,
        committed="",
        refused={},
        at_hand=frozenset(),
        arrived={},
        free_bytes=ROOM,
        slot_bytes=ROOM,
        memory_bytes=ROOM,
        vault="tpm",
        release_key=release.boot.release_key,
        signers=frozenset(release.boot.signers),
        phases=1,
    )
