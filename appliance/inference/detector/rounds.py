"""A walk over all assets, about once a second, for what no judgement of a row shows: readings that stay away, channels
that stand still, values out of their declared range, slow wear.

    early    what the checks say of assets that are too new for a score
    walk     what has begun or ended since the last walk, as findings; each is told once
    accept   a person says that it is normal
    mark     a person says that it is a fault: what leads the detector to accept it is undone at each walk

Places in the arrays of `quality` and `trend` follow the detector's assets and their channels by name, so that a
restart, a channel that joins and an asset that is forgotten leave everything else where it was.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from appliance.errors import InferenceError
from appliance.events.schema import Score, Severity, Stage
from appliance.inference.detector.absence import Absence
from appliance.inference.detector.arena import Integers
from appliance.inference.detector.asset import Asset, Task
from appliance.inference.detector.findings import FLAT, MISSING, RANGE, WEAR, Finding, Standing
from appliance.inference.detector.flood import Flood
from appliance.inference.detector.judging import Judged
from appliance.inference.detector.latch import NO_BRANCH, THRESHOLD
from appliance.inference.detector.memory import Memory
from appliance.inference.detector.places import Places, spans
from appliance.inference.detector.quality import BUSY, FEWEST_VALUES, Bools, Columns, Limit, Range, Stillness
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.wear import Wear

LONGEST_STEP_S = 10.0  # between two walks; what is more was sleep, or a clock that was set
SETTLED_AT_ONCE = 32  # assets whose channels are looked at for their liveliness
EARLY = 500  # assets that are told of in one walk before they have a score
LOOKED = 127  # rows, at most, of one asset in one walk
VERSION = 1


class Assets(Columns):
    """What the walk itself remembers of each asset."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "rows": ("<i8", (), 0),
        "watched": ("<i8", (), 0),
        "settled": ("?", (), 0),
    }
    rows: Integers  # at the last walk
    watched: Integers  # rows that were walked over
    settled: Bools  # its channels' liveliness is known


class _Saved(Struct, forbid_unknown_fields=True):
    version: int
    assets: list[tuple[str, list[str]]]
    tables: dict[str, dict[str, bytes]]
    told: dict[str, dict[str, str]]
    marked: Annotated[list[str], Meta(max_length=100_000)]
    estimates: dict[str, float]
    flood: tuple[str, list[str]] = ("", [])


class _Told(Struct, forbid_unknown_fields=True):
    told: dict[str, dict[str, str]]
    marked: Annotated[list[str], Meta(max_length=100_000)]
    flood: tuple[str, list[str]]


class Rounds:
    """`assets` and `memory` are the detector's; nobody may write to them during a walk."""

    def __init__(
        self, settings: DetectorSettings, memory: Memory, assets: dict[str, Asset], limits: Iterable[Limit] = ()
    ) -> None:
        self._settings, self._memory, self._known = settings, memory, assets
        self._limits = list(limits)
        self._places = Places(memory)
        self._standing = Standing()
        self._own, self._still, self._range = Assets(), Stillness(), Range()
        self._absence = Absence(self._places, self._standing, assets.keys(), settings.collect_rows)
        self._wear = Wear(self._places, self._standing, memory, self._range, settings.learn_rows)
        self._marked: set[str] = set()
        self._before = 0
        self._young: list[int] = []  # places that are too new for a score, and gained rows in the last walk

    def walk(self, now: int, listening: bool = True) -> list[Finding]:
        """`now` in UTC ns. Not `listening`: nothing could have come since the last walk, so nothing is missed."""
        step_s = min(max(now - self._before, 0) / 1e9, LONGEST_STEP_S) if self._before else 0.0
        self._before = now
        self._arrange()
        self._young = []
        if not self._places.assets:
            return []
        rows = np.array([asset.rows for asset in self._places.assets], np.int64)
        gained = np.where(rows < self._own.rows, 0, rows - self._own.rows)
        with np.errstate(all="ignore"):  # values near the end of the range
            self._watch(rows, gained)
            findings = [
                *self._absence.find(rows, gained, step_s if listening else 0.0),
                *self._find_flat(),
                *self._find_range(step_s),
                *self._wear.find(rows, gained),
            ]
        self._own.watched += gained
        self._own.rows = rows
        self._young = np.flatnonzero((gained > 0) & (rows < self._settings.collect_rows))[:EARLY].tolist()
        self._settle()
        self._hold_marks()
        return findings

    def early(self) -> list[Judged]:
        """After a walk: of assets that are too new for a score, those that gained rows. A slow device is seen to be
        looked at from its first reading on: beyond its declared limits or not, and how much is learned."""
        return [self._first_look(place) for place in self._young]

    def accept(self, asset: str, condition: str) -> None:
        """It is normal from now on. The condition of an anomaly means the asset's present state as a whole."""
        self._arrange()
        if condition == MISSING and asset == self._absence.flood.asset:
            self._absence.accept_flood()
            return
        place = self._places.names.index(asset) if asset in self._places.names else -1
        if place < 0:
            return
        channels = np.arange(self._places.first[place], self._places.first[place] + self._places.width[place])
        if condition == MISSING:
            self._absence.accept(place)
        if condition == FLAT:
            self._still.accept(channels)
        if condition in (WEAR, "anomaly"):
            self._wear.accept(asset, channels)
        self._standing.accept(asset, condition)
        self._marked.discard(asset)

    def mark(self, asset: str) -> None:
        """What stands is a fault: it is never accepted, and teaches nothing."""
        if asset in self._known:
            self._marked.add(asset)
            self._hold_marks()

    def forget(self, asset: str) -> list[Finding]:
        """The asset learns anew: what stands of it ends."""
        ended = self._standing.forget(asset)
        self._wear.forget(asset)
        self._marked.discard(asset)
        self._places.forget(asset)
        self._absence.flood.members.discard(asset)
        return ended

    def describe(self) -> dict[str, Any]:
        """Plain values, bounded."""
        wear = self._wear.describe()
        return {"wear": wear} if wear else {}

    def told(self) -> dict[str, Any]:
        """Plain values: which conditions hold."""
        return {
            "told": self._standing.conditions,
            "marked": sorted(self._marked),
            "flood": [self._absence.flood.asset, sorted(self._absence.flood.members)],
        }

    def retell(self, data: dict[str, Any]) -> None:
        """What `told` gave, later than what was restored. msgspec.ValidationError where it is something else."""
        saved = msgspec.convert(data, _Told)
        self._standing.conditions, self._marked = saved.told, set(saved.marked)
        self._absence.flood = Flood(*saved.flood)

    def snapshot(self) -> bytes:
        saved = _Saved(
            VERSION,
            list(zip(self._places.names, self._places.channels, strict=True)),
            {name: table.dump() for name, table in self._tables().items()},
            self._standing.conditions,
            sorted(self._marked),
            self._wear.estimates,
            (self._absence.flood.asset, sorted(self._absence.flood.members)),
        )
        return msgspec.msgpack.encode(saved)

    def restore(self, data: bytes) -> None:
        """InferenceError when the bytes are not a snapshot of this release."""
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
            if saved.version != VERSION:
                raise ValueError(f"version {saved.version}")
            counts = len(saved.assets), sum(len(channels) for _, channels in saved.assets)
            for name, table in self._tables().items():
                count = counts[name not in _OF_ASSETS]
                if name in saved.tables or name not in _LATER:
                    table.load(saved.tables[name], count)
                else:
                    table.rearrange(np.full(count, -1))
        except (msgspec.DecodeError, KeyError, ValueError) as error:
            raise InferenceError(
                f"what the rounds over the assets had learned cannot be read: {error}",
                "Move the state file away; the assets learn anew.",
            ) from error
        self._places.restore(saved.assets)
        self._absence.flood = Flood(*saved.flood)
        self._standing.conditions, self._marked = saved.told, set(saved.marked)
        self._wear.estimates = saved.estimates

    def _tables(self) -> dict[str, Columns]:
        return {
            "assets": self._own,
            "silence": self._absence.silence,
            "pauses": self._absence.silence.habits,
            "absence": self._absence.absence,
            "absences": self._absence.absence.habits,
            "clocks": self._wear.trends.clocks,
            "still": self._still,
            "repetitions": self._still.habits,
            "range": self._range,
            "paths": self._wear.trends.paths,
        }

    def _arrange(self) -> None:
        """Follow the detector's assets, where they are not those of the last walk."""
        source = self._places.follow(list(self._known.values()), self._own.rows)
        if source is None:
            return
        self._own.rearrange(source.assets)
        self._absence.rearrange(source.assets, source.channels)
        self._still.rearrange(source.channels)
        self._range.rearrange(source.channels)
        self._wear.trends.rearrange(source.assets, source.channels)
        self._declare()
        self._standing.keep(self._known)
        self._marked &= self._known.keys()

    def _declare(self) -> None:
        self._range.low[:], self._range.high[:] = -np.inf, np.inf
        for limit in self._limits:
            for place, asset in enumerate(self._places.assets):
                if limit.point in asset.columns and limit.holds(asset.name):
                    slot = self._places.first[place] + asset.columns[limit.point]
                    self._range.low[slot], self._range.high[slot] = limit.low, limit.high

    def _watch(self, rows: Integers, gained: Integers) -> None:
        """Show the new rows to those that look at rows, assets with about equally many of them at once."""
        index = np.array([asset.index for asset in self._places.assets], np.int64)
        ring = self._memory.mask[index] + 1
        looked = np.minimum(np.minimum(gained, ring - 1), LOOKED)
        size = np.ceil(np.log2(np.maximum(looked, 1))).astype(np.int64)
        for power in np.unique(size[looked > 0]):
            chosen = np.flatnonzero((size == power) & (looked > 0))
            self._look(chosen, index[chosen], rows[chosen], looked[chosen], 1 << int(power))

    def _look(self, chosen: Integers, index: Integers, rows: Integers, looked: Integers, count: int) -> None:
        width = self._places.width[chosen]
        values = self._places.newest(index, rows, count + 1)
        channels = spans(self._places.first[chosen], width)
        new = np.arange(count)[:, None] >= count - np.repeat(looked, width)
        changed = (values[1:] != values[:-1]) & new
        first = np.repeat(rows == looked, width)  # before an asset's first row there is none
        changed[count - np.repeat(looked, width)[first], np.flatnonzero(first)] = False
        self._still.step(channels, changed, np.repeat(looked, width))
        limited = np.flatnonzero(np.isfinite(self._range.low[channels]) | np.isfinite(self._range.high[channels]))
        if limited.size:
            self._range.step(channels[limited], values[1:, limited], new[:, limited])

    def _find_flat(self) -> Iterable[Finding]:
        still = self._still
        for slot in still.suspects().tolist():
            place = self._places.owner(slot)
            asset = self._places.assets[place]
            channel = asset.channels[slot - self._places.first[place]]
            if channel in asset.missing or channel in asset.away:
                still.run[slot] = 0  # it does not come: that it is repeated is our own doing
                continue
            still.told[slot] = True
            if not self._standing.holds(asset.name, FLAT):
                run, longest = still.run[slot], still.longest[slot]
                why = f"{channel} has had one value for {run:.0f} readings; never more than {longest:.0f} before"
                yield self._standing.tell(
                    Finding(asset.name, FLAT, why, channel, value=run, limit=float(still.limit()[slot]))
                )
        yield from self._standing.ended(FLAT, still.told, self._places)

    def _find_range(self, step_s: float) -> Iterable[Finding]:
        found = self._range
        found.rest(step_s)
        for slot in np.flatnonzero(found.told).tolist():
            place = self._places.owner(slot)
            asset = self._places.assets[place]
            if self._standing.holds(asset.name, RANGE):
                continue
            channel, value = asset.channels[slot - self._places.first[place]], float(found.worst[slot])
            low, high = float(found.low[slot]), float(found.high[slot])
            limit, word = (low, "below") if value < low else (high, "above")
            why = f"{channel} is {value:.6g}, {word} its limit of {limit:.6g}"
            yield self._standing.tell(Finding(asset.name, RANGE, why, channel, Severity.ALARM, value, limit))
        yield from self._standing.ended(RANGE, found.told, self._places)

    def _first_look(self, place: int) -> Judged:
        asset, first = self._places.assets[place], int(self._places.first[place])
        beyond = np.flatnonzero(self._range.told[first : first + int(self._places.width[place])])
        cause = asset.channels[beyond[0]] if beyond.size else ""
        branch, score = (RANGE, 2 * THRESHOLD) if beyond.size else ("", 0.0)
        return Judged(asset.name, Score(asset.at, score, THRESHOLD, Stage.COLLECTING, cause, branch, rows=asset.rows))

    def _settle(self) -> None:
        """Which channels of an asset that has been watched for a learning period move all the time."""
        new = np.flatnonzero((self._own.watched >= self._settings.learn_rows) & ~self._own.settled)[:SETTLED_AT_ONCE]
        for place in new.tolist():
            asset = self._places.assets[place]
            slots = slice(int(self._places.first[place]), int(self._places.first[place] + self._places.width[place]))
            samples = np.sort(self._memory.samples(asset, min(asset.rows, asset.ring, LOOKED)), axis=0)
            values = 1 + (np.diff(samples, axis=0) != 0.0).sum(axis=0)
            busy = self._still.changes[slots] >= BUSY * self._own.watched[place]
            self._still.lively[slots] = busy & (values >= FEWEST_VALUES)
        self._own.settled[new] = True

    def _hold_marks(self) -> None:
        for name in list(self._marked):
            asset = self._known.get(name)
            if asset is None:
                self._marked.discard(name)
                continue
            asset.events = [event for event in asset.events if event.task is not Task.ACCEPT]
            asset.latch.ended = asset.latch.relieved = NO_BRANCH
            self._memory.relieved[asset.index] = NO_BRANCH
            if not asset.latch.busy:
                self._marked.discard(name)


_LATER = ("absence", "absences")  # a release before this one did without
_OF_ASSETS = ("assets", "silence", "pauses", "clocks")
