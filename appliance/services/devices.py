"""The devices that were found: what their sources say of them, and what a person says, remembered over restarts.

A device's asset never changes: history, alarms and what was learned hang on it. Its name is a label, which a person may
change; `ignore` leaves its readings out; `forget` drops what is remembered, and a device that still speaks is found
again. Facts are written at most every few seconds, a person's word before it is answered.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from appliance.errors import DamagedError, MillwrightError, StoreError
from appliance.events.schema import Device
from appliance.runtime import files

log = logging.getLogger(__name__)

FILE = "devices.state"
MAX_BYTES = 64 << 20
MAX_DEVICES = 20_000
MAX_NAME = 100  # characters
WRITE_NS = 2_000_000_000  # between two writes of facts


class Remembered(msgspec.Struct, frozen=True):
    """A device as its source tells it, and a person's words."""

    facts: Device
    label: str = ""
    ignored: bool = False
    first_seen: int = 0

    def shown(self) -> Device:
        return replace(self.facts, name=self.label or self.facts.name, ignored=self.ignored)


_Kept = dict[str, Remembered]


class Devices:
    """`path` None: nothing is remembered (tests, demonstrations)."""

    def __init__(self, path: Path | None, clock: Callable[[], int]) -> None:
        self._path, self._clock = path, clock
        self._kept: _Kept = {}
        self._ignored: frozenset[str] = frozenset()
        self._written, self._is_dirty = 0, False
        self._load()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def ignored(self) -> frozenset[str]:
        """Assets whose readings nobody wants."""
        return self._ignored

    def known(self, asset: str) -> Device | None:
        """The facts that were remembered."""
        kept = self._kept.get(asset)
        return kept.facts if kept else None

    def all(self) -> list[tuple[str, Device]]:
        """As people are shown them."""
        return [(asset, kept.shown()) for asset, kept in sorted(self._kept.items())]

    def take(self, asset: str, facts: Device) -> Device | None:
        """What a source says: the device as it is shown now. None where there is no room for another."""
        kept = self._kept.get(asset)
        if kept is None:
            if len(self._kept) >= MAX_DEVICES:
                return None
            kept = Remembered(facts, first_seen=self._clock())
        is_news = not _is_alike(kept.facts, facts) or asset not in self._kept
        self._kept[asset] = kept = replace(kept, facts=facts)
        self._is_dirty |= is_news
        return kept.shown()

    def rename(self, asset: str, name: str) -> Device:
        """An empty name gives it back its own."""
        name = name.strip()
        if len(name) > MAX_NAME or not (name.isprintable()):
            raise MillwrightError(f"{name[:40]!r} cannot be a name", f"Use 1 to {MAX_NAME} printable characters.")
        return self._say(asset, label=name)

    def ignore(self, asset: str, ignored: bool) -> Device:
        return self._say(asset, ignored=ignored)

    def forget(self, asset: str) -> None:
        self._found(asset)
        del self._kept[asset]
        self._is_dirty = True
        self._number()
        self.write()

    def find(self, text: str) -> str:
        """The asset of a path or a name. MillwrightError where there is none, or several of that name."""
        if text in self._kept:
            return text
        named = [asset for asset, kept in self._kept.items() if kept.shown().name.casefold() == text.casefold()]
        if len(named) > 1:
            raise MillwrightError(f"{len(named)} devices are called '{text}'", f"Name one: {', '.join(named[:5])}.")
        if not named:
            raise MillwrightError(f"there is no device '{text[:80]}'", "See 'millwright devices list'.")
        return named[0]

    def write_due(self, now: int) -> None:
        """Facts that changed, from time to time. A disk that fails is told once in a while and stops nothing."""
        if self._is_dirty and now - self._written >= WRITE_NS:
            try:
                self.write()
            except StoreError as error:
                self._written = now
                log.warning("the devices are not remembered: %s", error)

    def write(self) -> None:
        """StoreError where they cannot be kept."""
        if self._path is not None and self._is_dirty:
            files.write_sealed(self._path, msgspec.msgpack.encode(self._kept))
        self._written, self._is_dirty = self._clock(), False

    def _say(self, asset: str, **words: object) -> Device:
        before = self._found(asset)
        self._kept[asset] = kept = replace(before, **words)
        self._is_dirty = True
        try:
            self.write()
        except StoreError:
            self._kept[asset] = before
            raise
        self._number()
        return kept.shown()

    def _found(self, asset: str) -> Remembered:
        kept = self._kept.get(asset)
        if kept is None:
            raise MillwrightError(f"there is no device '{asset[:80]}'", "See 'millwright devices list'.")
        return kept

    def _number(self) -> None:
        self._ignored = frozenset(asset for asset, kept in self._kept.items() if kept.ignored)

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            raw = files.read_sealed(self._path, MAX_BYTES)
            kept = msgspec.msgpack.decode(raw, type=_Kept) if raw else {}
        except (DamagedError, msgspec.DecodeError) as error:
            aside = files.set_aside(self._path, self._clock())
            log.error("%s; it is kept as %s, and devices are found anew: their names are lost", error, aside.name)
            return
        self._kept = {asset: replace(one, facts=_at_rest(one.facts)) for asset, one in kept.items()}
        self._number()


def _is_alike(one: Device, other: Device) -> bool:
    """But for what comes and goes, and is not worth a write."""
    return replace(_at_rest(one), at=0) == replace(_at_rest(other), at=0)


def _at_rest(device: Device) -> Device:
    return replace(device, available=None, trouble="")
