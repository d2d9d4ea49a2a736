"""A walk over all assets, about once a second, for what no judgement of a row shows: readings that stay away, channels
that stand still, values out of their declared range, slow wear.

    walk     what has begun or ended since the last walk, as findings; each is told once
    accept   a person says that it is normal
    mark     a person says that it is a fault: what leads the detector to accept it is undone at each walk

Places in the arrays of `quality` and `trend` follow the detector's assets and their channels by name, so that a
restart, a channel that joins and an asset that is forgotten leave everything else where it was.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct

from appliance.errors import InferenceError
from appliance.events.schema import Severity
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.asset import Asset, Task
from appliance.inference.detector.latch import NO_BRANCH, THRESHOLD
from appliance.inference.detector.memory import HEADER, Branch, Memory, Row
from appliance.inference.detector.quality import BUSY, FEWEST_VALUES, Bools, Columns, Range, Silence, Stillness
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.trend import BLOCK, Batch, Goal, Trend, Trends

MISSING, FLAT, RANGE, WEAR = "missing-data", "flat-line", "out-of-range", "wear"
LONGEST_STEP_S = 10.0  # between two walks; what is more was sleep, or a clock that was set
SETTLED_AT_ONCE = 32  # assets whose channels are looked at for their liveliness
LOOKED = 127  # rows, at most, of one asset in one walk
RENEW = 1.5  # an estimate that changes by so much is told anew
NAMED = 8  # in `describe`
VERSION = 1
_PHASE = 29  # so that the blocks of assets that began together do not end together


class Limit(NamedTuple):
    """Declared by whoever knows the machine. `asset` may end in /#, and # alone is every asset."""

    asset: str
    point: str
    low: float
    high: float

    def holds(self, asset: str) -> bool:
        if self.asset.endswith("#"):
            stem = self.asset.removesuffix("#")
            return asset.startswith(stem) or asset == stem.removesuffix("/")
        return self.asset == asset


class Finding(NamedTuple):
    """A condition of an asset that has begun, or ended where `why` is empty."""

    asset: str
    condition: str
    why: str = ""
    cause: str = ""
    severity: Severity = Severity.WARNING
    value: float = 1.0
    limit: float = 1.0


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


class Rounds:
    """`assets` and `memory` are the detector's; nobody may write to them during a walk."""

    def __init__(
        self, settings: DetectorSettings, memory: Memory, assets: dict[str, Asset], limits: Iterable[Limit] = ()
    ) -> None:
        self._settings, self._memory, self._known = settings, memory, assets
        self._limits = list(limits)
        self._assets: list[Asset] = []  # by place
        self._names: list[str] = []
        self._channels: list[list[str]] = []
        self._width: Integers = np.zeros(0, np.int64)
        self._first: Integers = np.zeros(0, np.int64)  # place of an asset's first channel
        self._own, self._silence, self._still, self._range = Assets(), Silence(), Stillness(), Range()
        self._trends = Trends()
        self._told: dict[str, dict[str, str]] = {}  # asset -> condition -> why
        self._estimates: dict[str, float] = {}  # asset -> moment (s) at which wear was last said to reach its limit
        self._trending: dict[str, tuple[str, Trend]] = {}
        self._marked: set[str] = set()
        self._before = 0

    def walk(self, now: int, listening: bool = True) -> list[Finding]:
        """`now` in UTC ns. Not `listening`: nothing could have come since the last walk, so nothing is missed."""
        step_s = min(max(now - self._before, 0) / 1e9, LONGEST_STEP_S) if self._before else 0.0
        self._before = now
        self._arrange()
        if not self._assets:
            return []
        rows = np.array([asset.rows for asset in self._assets], np.int64)
        gained = np.where(rows < self._own.rows, 0, rows - self._own.rows)
        with np.errstate(all="ignore"):  # values near the end of the range
            self._watch(rows, gained)
            findings = [
                *self._find_missing(rows, gained, step_s if listening else 0.0),
                *self._find_flat(),
                *self._find_range(step_s),
                *self._find_wear(rows, gained),
            ]
        self._own.watched += gained
        self._own.rows = rows
        self._settle()
        self._hold_marks()
        return findings

    def accept(self, asset: str, condition: str) -> None:
        """It is normal from now on. The condition of an anomaly means the asset's present state as a whole."""
        self._arrange()
        place = self._names.index(asset) if asset in self._names else -1
        if place < 0:
            return
        channels = np.arange(self._first[place], self._first[place] + self._width[place])
        if condition == MISSING:
            self._silence.accept(place)
        if condition == FLAT:
            self._still.accept(channels)
        if condition in (WEAR, "anomaly"):
            self._trends.accept(channels)
            self._trending.pop(asset, None)
            self._estimates.pop(asset, None)
        self._told.get(asset, {}).pop(condition, None)
        self._marked.discard(asset)

    def mark(self, asset: str) -> None:
        """What stands is a fault: it is never accepted, and teaches nothing."""
        if asset in self._known:
            self._marked.add(asset)
            self._hold_marks()

    def forget(self, asset: str) -> list[Finding]:
        """The asset learns anew: what stands of it ends."""
        ended = [Finding(asset, condition) for condition in self._told.pop(asset, {})]
        self._trending.pop(asset, None)
        self._marked.discard(asset)
        if asset in self._names:
            self._names[self._names.index(asset)] = ""  # nobody's, so that nothing is carried over
            self._assets = []
        return ended

    def describe(self) -> dict[str, Any]:
        """Plain values, bounded."""
        if not self._trending:
            return {}
        worst = sorted(self._trending.items(), key=lambda item: item[1][1].left_s)[:NAMED]
        return {
            "wear": [
                {
                    "asset": asset,
                    "channel": channel,
                    "value": trend.value,
                    "per_day": trend.per_day,
                    "limit": trend.limit,
                    "days_left": round(trend.left_s / 86_400, 3),
                }
                for asset, (channel, trend) in worst
            ]
        }

    def snapshot(self) -> bytes:
        saved = _Saved(
            VERSION,
            list(zip(self._names, self._channels, strict=True)),
            {name: table.dump() for name, table in self._tables().items()},
            self._told,
            sorted(self._marked),
            self._estimates,
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
                table.load(saved.tables[name], counts[name not in _OF_ASSETS])
        except (msgspec.DecodeError, KeyError, ValueError) as error:
            raise InferenceError(
                f"what the rounds over the assets had learned cannot be read: {error}",
                "Move the state file away; the assets learn anew.",
            ) from error
        self._names = [name for name, _ in saved.assets]
        self._channels = [channels for _, channels in saved.assets]
        self._width = np.array([len(channels) for channels in self._channels], np.int64)
        self._first = np.cumsum(self._width) - self._width
        self._told, self._marked, self._estimates = saved.told, set(saved.marked), saved.estimates
        self._assets = []

    def _tables(self) -> dict[str, Columns]:
        return {
            "assets": self._own,
            "silence": self._silence,
            "pauses": self._silence.habits,
            "clocks": self._trends.clocks,
            "still": self._still,
            "repetitions": self._still.habits,
            "range": self._range,
            "paths": self._trends.paths,
        }

    def _arrange(self) -> None:
        """Follow the detector's assets, where they are not those of the last walk."""
        assets = list(self._known.values())
        if assets == self._assets and all(
            asset.channels is channels for asset, channels in zip(assets, self._channels, strict=True)
        ):
            return
        places = {name: place for place, name in enumerate(self._names)}
        source = np.array([places.get(asset.name, -1) for asset in assets], np.int64)
        again = [place for place, old in enumerate(source) if old >= 0 and assets[place].rows < self._own.rows[old]]
        source[again] = -1  # pushed out and met again
        width = np.array([asset.width for asset in assets], np.int64)
        first = np.cumsum(width) - width
        slots = self._slots(source, width)
        self._own.rearrange(source)
        self._silence.rearrange(source)
        self._still.rearrange(slots)
        self._range.rearrange(slots)
        self._trends.rearrange(source, slots)
        self._assets = list(assets)
        self._names = [asset.name for asset in assets]
        self._channels = [asset.channels for asset in assets]
        self._width, self._first = width, first
        self._declare()
        self._told = {name: told for name, told in self._told.items() if name in self._known}
        self._marked &= self._known.keys()

    def _slots(self, source: Integers, width: Integers) -> Integers:
        """Of each channel the place it had; columns are only ever added at an asset's end."""
        if not len(source):
            return np.zeros(0, np.int64)
        known = source >= 0
        before = np.where(known, self._width[source], 0) if len(self._width) else np.zeros(len(source), np.int64)
        first = np.where(known, self._first[source], 0) if len(self._first) else before
        column = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
        slots: Integers = np.where(column < np.repeat(before, width), np.repeat(first, width) + column, -1)
        return slots

    def _declare(self) -> None:
        self._range.low[:], self._range.high[:] = -np.inf, np.inf
        for limit in self._limits:
            for place, asset in enumerate(self._assets):
                if limit.point in asset.columns and limit.holds(asset.name):
                    slot = self._first[place] + asset.columns[limit.point]
                    self._range.low[slot], self._range.high[slot] = limit.low, limit.high

    def _watch(self, rows: Integers, gained: Integers) -> None:
        """Show the new rows to those that look at rows, assets with about equally many of them at once."""
        index = np.array([asset.index for asset in self._assets], np.int64)
        ring = self._memory.mask[index] + 1
        looked = np.minimum(np.minimum(gained, ring - 1), LOOKED)
        size = np.ceil(np.log2(np.maximum(looked, 1))).astype(np.int64)
        for power in np.unique(size[looked > 0]):
            chosen = np.flatnonzero((size == power) & (looked > 0))
            self._look(chosen, index[chosen], rows[chosen], looked[chosen], 1 << int(power))

    def _look(self, chosen: Integers, index: Integers, rows: Integers, looked: Integers, count: int) -> None:
        width = self._width[chosen]
        values = self._newest(index, rows, count + 1)
        channels = _spans(self._first[chosen], width)
        new = np.arange(count)[:, None] >= count - np.repeat(looked, width)
        changed = (values[1:] != values[:-1]) & new
        first = np.repeat(rows == looked, width)  # before an asset's first row there is none
        changed[count - np.repeat(looked, width)[first], np.flatnonzero(first)] = False
        self._still.step(channels, changed, np.repeat(looked, width))
        limited = np.flatnonzero(np.isfinite(self._range.low[channels]) | np.isfinite(self._range.high[channels]))
        if limited.size:
            self._range.step(channels[limited], values[1:, limited], new[:, limited])

    def _newest(self, index: Integers, rows: Integers, count: int) -> Floats:
        """[count, channels] of the assets `index`, the oldest first."""
        memory = self._memory
        width = memory.width[index]
        row = (np.arange(-count, 0)[:, None] + rows) & memory.mask[index]
        row = (row + HEADER) * (width + 1) + memory.base[index]
        place = np.repeat(row, width, axis=1)
        place += np.arange(place.shape[1]) - np.repeat(np.cumsum(width) - width, width)
        return memory.arena.words.take(place)

    def _find_missing(self, rows: Integers, gained: Integers, step_s: float) -> Iterable[Finding]:
        silence = self._silence
        for place in silence.step(gained, step_s, rows >= self._settings.collect_rows).tolist():
            name = self._names[place]
            if silence.told[place]:
                for_s, usual_s = silence.silent_s[place], silence.period_s[place]
                why = f"no reading for {_span(for_s)}; usually one every {_span(usual_s)}"
                yield self._tell(Finding(name, MISSING, why, value=for_s, limit=float(silence.limit_s()[place])))
            else:
                yield self._tell(Finding(name, MISSING))

    def _find_flat(self) -> Iterable[Finding]:
        still = self._still
        for slot in still.suspects().tolist():
            place = self._owner(slot)
            asset = self._assets[place]
            channel = asset.channels[slot - self._first[place]]
            if channel in asset.missing or channel in asset.away:
                still.run[slot] = 0  # it does not come: that it is repeated is our own doing
                continue
            still.told[slot] = True
            if FLAT not in self._told.get(asset.name, {}):
                run, longest = still.run[slot], still.longest[slot]
                why = f"{channel} has had one value for {run:.0f} readings; never more than {longest:.0f} before"
                yield self._tell(Finding(asset.name, FLAT, why, channel, value=run, limit=float(still.limit()[slot])))
        yield from self._ended(FLAT, still.told)

    def _find_range(self, step_s: float) -> Iterable[Finding]:
        found = self._range
        found.rest(step_s)
        for slot in np.flatnonzero(found.told).tolist():
            place = self._owner(slot)
            asset = self._assets[place]
            if RANGE in self._told.get(asset.name, {}):
                continue
            channel, value = asset.channels[slot - self._first[place]], float(found.worst[slot])
            low, high = float(found.low[slot]), float(found.high[slot])
            why = f"{channel} is {value:.6g}; its limits are {low:.6g} to {high:.6g}"
            limit = low if value < low else high
            yield self._tell(Finding(asset.name, RANGE, why, channel, Severity.ALARM, value, limit))
        yield from self._ended(RANGE, found.told)

    def _find_wear(self, rows: Integers, gained: Integers) -> Iterable[Finding]:
        """Told again where the estimate has changed."""
        phase = np.arange(len(rows)) * _PHASE % BLOCK
        whole = (rows + phase) // BLOCK > (rows - gained + phase) // BLOCK
        chosen = np.flatnonzero(whole & (rows >= max(BLOCK, self._settings.learn_rows)))
        if not chosen.size:
            return
        index = np.array([self._assets[place].index for place in chosen], np.int64)
        width = self._width[chosen]
        channels = _spans(self._first[chosen], width)
        owner = np.repeat(np.arange(len(chosen)), width)
        medians = np.median(self._newest(index, rows[chosen], BLOCK), axis=0)
        goal = self._goal(index, width, channels)
        standing = np.array([self._assets[place].latch.standing for place in chosen])
        self._trends.add(Batch(chosen, self._times(index, rows[chosen]), channels, owner, medians, goal), standing)
        trending = np.logical_or.reduceat(self._trends.standing()[channels], np.cumsum(width) - width)
        for number, place in enumerate(chosen.tolist()):
            if (
                trending[number]
                or self._names[place] in self._trending
                or WEAR in self._told.get(self._names[place], ())
            ):
                mine = owner == number
                yield from self._tell_wear(place, channels[mine], Goal(*(side[mine] for side in goal)))

    def _tell_wear(self, place: int, channels: Integers, goal: Goal) -> Iterable[Finding]:
        """Of one asset: its channel that is the first to reach its limit."""
        asset = self._assets[place]
        found = [
            (trend.left_s, asset.channels[column], trend)
            for column, channel in enumerate(channels.tolist())
            if (trend := self._trends.trend(place, channel, Goal(*(side[column : column + 1] for side in goal))))
        ]
        if not found:
            self._trending.pop(asset.name, None)
            if WEAR in self._told.get(asset.name, {}):
                self._estimates.pop(asset.name, None)
                yield self._tell(Finding(asset.name, WEAR))
            return
        left_s, channel, trend = min(found)
        self._trending[asset.name] = channel, trend
        told_s = max(self._estimates.get(asset.name, 0.0) - asset.at / 1e9, 0.0)
        if WEAR in self._told.get(asset.name, {}) and left_s / RENEW <= told_s <= left_s * RENEW:
            return
        self._estimates[asset.name] = asset.at / 1e9 + left_s
        why = wear_text(channel, trend)
        yield self._tell(Finding(asset.name, WEAR, why, channel, value=trend.value, limit=trend.limit))

    def _goal(self, index: Integers, width: Integers, channels: Integers) -> Goal:
        """Declared limits, else where the level branch would raise an alarm for this channel alone."""
        memory = self._memory
        base, stride = np.repeat(memory.base[index], width), np.repeat(width + 1, width)
        column = np.arange(len(channels)) - np.repeat(np.cumsum(width) - width, width)
        centre = memory.arena.words.take(base + Row.CENTRE * stride + column)
        weight = memory.arena.words.take(base + Row.WEIGHT * stride + column)
        unit = np.repeat(memory.unit[Branch.LEVEL, index], width)
        away = np.where(weight > 0.0, THRESHOLD * unit / np.where(weight > 0.0, weight, 1.0), np.nan)
        low, high = self._range.low[channels], self._range.high[channels]
        return Goal(
            centre, np.where(np.isfinite(low), low, centre - away), np.where(np.isfinite(high), high, centre + away)
        )

    def _times(self, index: Integers, rows: Integers) -> Floats:
        """Of the middle row of the newest block, s."""
        memory = self._memory
        row = ((rows - BLOCK // 2) & memory.mask[index]) + HEADER
        width = memory.width[index]
        return memory.arena.integers.take(memory.base[index] + row * (width + 1) + width) / 1e9

    def _settle(self) -> None:
        """Which channels of an asset that has been watched for a learning period move all the time."""
        new = np.flatnonzero((self._own.watched >= self._settings.learn_rows) & ~self._own.settled)[:SETTLED_AT_ONCE]
        for place in new.tolist():
            asset = self._assets[place]
            slots = slice(int(self._first[place]), int(self._first[place] + self._width[place]))
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

    def _ended(self, condition: str, told: Bools) -> Iterable[Finding]:
        """Of the assets of which this was told, those with no channel left of which it holds."""
        for name in [name for name, standing in self._told.items() if condition in standing]:
            place = self._names.index(name)
            if not told[self._first[place] : self._first[place] + self._width[place]].any():
                yield self._tell(Finding(name, condition))

    def _tell(self, finding: Finding) -> Finding:
        standing = self._told.setdefault(finding.asset, {})
        if finding.why:
            standing[finding.condition] = finding.why
        else:
            standing.pop(finding.condition, None)
        if not standing:
            del self._told[finding.asset]
        return finding

    def _owner(self, slot: int) -> int:
        return int(np.searchsorted(self._first, slot, side="right")) - 1


_OF_ASSETS = ("assets", "silence", "pauses", "clocks")


def wear_text(channel: str, trend: Trend) -> str:
    """One sentence with the estimate."""
    verb = "rises" if trend.per_day > 0.0 else "falls"
    head = f"{channel} {verb} by {abs(trend.per_day):.3g} a day"
    if not trend.left_s:
        return f"{head} and has reached its limit {trend.limit:.4g}"
    return f"{head}; it reaches its limit {trend.limit:.4g} in about {_span(trend.left_s)}"


def _spans(first: Integers, width: Integers) -> Integers:
    """[first[0], first[0] + 1, ... width[0] of them, first[1], ...]"""
    places: Integers = np.arange(width.sum()) + np.repeat(first - (np.cumsum(width) - width), width)
    return places


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 2.0 else f"{seconds:.2g} s"
