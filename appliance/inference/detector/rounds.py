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
from appliance.inference.detector.arena import Integers
from appliance.inference.detector.asset import Asset, Task
from appliance.inference.detector.flood import TOGETHER, Flood
from appliance.inference.detector.latch import NO_BRANCH, THRESHOLD
from appliance.inference.detector.memory import Branch, Memory, Row
from appliance.inference.detector.places import Places, spans
from appliance.inference.detector.quality import BUSY, FEWEST_VALUES, Bools, Columns, Limit, Range, Silence, Stillness
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.trend import BLOCK, Batch, Goal, Trend, Trends, medians, span_text, wear_text

MISSING, FLAT, RANGE, WEAR = "missing-data", "flat-line", "out-of-range", "wear"
LONGEST_STEP_S = 10.0  # between two walks; what is more was sleep, or a clock that was set
SETTLED_AT_ONCE = 32  # assets whose channels are looked at for their liveliness
LOOKED = 127  # rows, at most, of one asset in one walk
RENEW = 1.5  # an estimate that changes by so much is told anew
NAMED = 8  # in `describe`
VERSION = 1
_PHASE = 29  # so that the blocks of assets that began together do not end together


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
        self._own, self._silence, self._still, self._range = Assets(), Silence(), Stillness(), Range()
        self._absence = Silence()  # of channels, while their assets are heard
        self._trends = Trends()
        self._told: dict[str, dict[str, str]] = {}  # asset -> condition -> why
        self._estimates: dict[str, float] = {}  # asset -> moment (s) at which wear was last said to reach its limit
        self._trending: dict[str, tuple[str, Trend]] = {}
        self._marked: set[str] = set()
        self._flood = Flood()
        self._before = 0

    def walk(self, now: int, listening: bool = True) -> list[Finding]:
        """`now` in UTC ns. Not `listening`: nothing could have come since the last walk, so nothing is missed."""
        step_s = min(max(now - self._before, 0) / 1e9, LONGEST_STEP_S) if self._before else 0.0
        self._before = now
        self._arrange()
        if not self._places.assets:
            return []
        rows = np.array([asset.rows for asset in self._places.assets], np.int64)
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
        if condition == MISSING and asset == self._flood.asset:
            for name in list(self._flood.members):
                self._silence.accept(self._places.names.index(name))
            self._flood = Flood()
            return
        place = self._places.names.index(asset) if asset in self._places.names else -1
        if place < 0:
            return
        channels = np.arange(self._places.first[place], self._places.first[place] + self._places.width[place])
        if condition == MISSING:
            self._silence.accept(place)
            gone = channels[self._absence.told[channels]]
            self._absence.told[gone], self._absence.rows[gone] = False, 0  # strangers until they are heard again
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
        self._places.forget(asset)
        self._flood.members.discard(asset)
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

    def told(self) -> dict[str, Any]:
        """Plain values: which conditions hold."""
        return {
            "told": self._told,
            "marked": sorted(self._marked),
            "flood": [self._flood.asset, sorted(self._flood.members)],
        }

    def retell(self, data: dict[str, Any]) -> None:
        """What `told` gave, later than what was restored. msgspec.ValidationError where it is something else."""
        saved = msgspec.convert(data, _Told)
        self._told, self._marked, self._flood = saved.told, set(saved.marked), Flood(*saved.flood)

    def snapshot(self) -> bytes:
        saved = _Saved(
            VERSION,
            list(zip(self._places.names, self._places.channels, strict=True)),
            {name: table.dump() for name, table in self._tables().items()},
            self._told,
            sorted(self._marked),
            self._estimates,
            (self._flood.asset, sorted(self._flood.members)),
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
        self._flood = Flood(*saved.flood)
        self._told, self._marked, self._estimates = saved.told, set(saved.marked), saved.estimates

    def _tables(self) -> dict[str, Columns]:
        return {
            "assets": self._own,
            "silence": self._silence,
            "pauses": self._silence.habits,
            "absence": self._absence,
            "absences": self._absence.habits,
            "clocks": self._trends.clocks,
            "still": self._still,
            "repetitions": self._still.habits,
            "range": self._range,
            "paths": self._trends.paths,
        }

    def _arrange(self) -> None:
        """Follow the detector's assets, where they are not those of the last walk."""
        source = self._places.follow(list(self._known.values()), self._own.rows)
        if source is None:
            return
        self._own.rearrange(source.assets)
        self._silence.rearrange(source.assets)
        self._absence.rearrange(source.channels)
        self._still.rearrange(source.channels)
        self._range.rearrange(source.channels)
        self._trends.rearrange(source.assets, source.channels)
        self._declare()
        self._told = {name: told for name, told in self._told.items() if name in self._known}
        self._marked &= self._known.keys()
        self._flood.members &= self._known.keys()

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

    def _find_missing(self, rows: Integers, gained: Integers, step_s: float) -> Iterable[Finding]:
        silence, absence = self._silence, self._absence
        heard_after_s = np.where(gained > 0, silence.silent_s + step_s, 0.0)
        changed = silence.step(gained, step_s, rows >= self._settings.collect_rows).tolist()
        known = absence.rows >= self._settings.collect_rows
        slots = absence.step(self._came(gained), np.repeat(heard_after_s, self._places.width), known).tolist()
        heard = [place for place in np.flatnonzero(gained).tolist() if self._told or self._flood.asset]
        yield from self._fold(changed, heard)
        alone = [place for place in changed if self._places.names[place] not in self._flood.members]
        told = [place for place in heard if MISSING in self._told.get(self._places.names[place], ())]
        back = [place for place in told if not self._missing(place).why]
        for place in dict.fromkeys([*alone, *back, *(self._places.owner(slot) for slot in slots)]):
            found = self._missing(place)
            if found.why != self._told.get(found.asset, {}).get(MISSING, ""):
                yield self._tell(found)

    def _fold(self, changed: list[int], heard: list[int]) -> Iterable[Finding]:
        """Those that fell silent together, and that came back from it, as one."""
        flood, names, before = self._flood, self._places.names, self._flood.asset
        silent = [names[place] for place in changed if self._silence.told[place]]
        size = len(flood.members)
        flood.take(silent, self._known)
        asset, left = flood.asset, flood.release(names[place] for place in heard)
        if asset and not flood.asset:
            yield Finding(asset, MISSING)
            for name in left:
                yield self._tell(self._missing(names.index(name)))
        elif asset and (asset != before or len(flood.members) != size):
            yield Finding(asset, MISSING, flood.why(), value=float(len(flood.members)), limit=float(TOGETHER))

    def _came(self, gained: Integers) -> Integers:
        """[channels] Of each asset's new rows those up to the last one that had the channel."""
        came: Integers = np.repeat(gained, self._places.width)
        for place, asset in enumerate(self._places.assets):
            if asset.missing or asset.away:
                first = self._places.first[place]
                for name, rows in asset.missing.items():
                    came[first + asset.columns[name]] = max(gained[place] - rows, 0)
                for name in asset.away:
                    came[first + asset.columns[name]] = 0
        return came

    def _missing(self, place: int) -> Finding:
        """What is missing of an asset: all of it, or some channels, or nothing."""
        name, table, worst = self._places.names[place], self._silence, place
        if self._silence.told[place]:
            what, cause = "no reading", ""
        else:
            first, table = int(self._places.first[place]), self._absence
            gone = np.flatnonzero(table.told[first : first + int(self._places.width[place])])
            if not gone.size:
                return Finding(name, MISSING)
            worst, channels = first + int(gone[0]), self._places.channels[place]
            cause = channels[gone[0]]
            what = f"no {cause}" if gone.size == 1 else f"no {cause} and {gone.size - 1} other channels"
        for_s, usual_s = float(table.silent_s[worst]), float(table.period_s[worst])
        why = f"{what} for {span_text(for_s)}; usually one every {span_text(usual_s)}"
        return Finding(name, MISSING, why, cause, value=for_s, limit=float(table.limit_s()[worst]))

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
            if FLAT not in self._told.get(asset.name, {}):
                run, longest = still.run[slot], still.longest[slot]
                why = f"{channel} has had one value for {run:.0f} readings; never more than {longest:.0f} before"
                yield self._tell(Finding(asset.name, FLAT, why, channel, value=run, limit=float(still.limit()[slot])))
        yield from self._ended(FLAT, still.told)

    def _find_range(self, step_s: float) -> Iterable[Finding]:
        found = self._range
        found.rest(step_s)
        for slot in np.flatnonzero(found.told).tolist():
            place = self._places.owner(slot)
            asset = self._places.assets[place]
            if RANGE in self._told.get(asset.name, {}):
                continue
            channel, value = asset.channels[slot - self._places.first[place]], float(found.worst[slot])
            low, high = float(found.low[slot]), float(found.high[slot])
            limit, word = (low, "below") if value < low else (high, "above")
            why = f"{channel} is {value:.6g}, {word} its limit of {limit:.6g}"
            yield self._tell(Finding(asset.name, RANGE, why, channel, Severity.ALARM, value, limit))
        yield from self._ended(RANGE, found.told)

    def _find_wear(self, rows: Integers, gained: Integers) -> Iterable[Finding]:
        """Told again where the estimate has changed."""
        phase = np.arange(len(rows)) * _PHASE % BLOCK
        whole = (rows + phase) // BLOCK > (rows - gained + phase) // BLOCK
        chosen = np.flatnonzero(whole & (rows >= max(BLOCK, self._settings.learn_rows)))
        if not chosen.size:
            return
        assets = [self._places.assets[place] for place in chosen.tolist()]
        index = np.array([asset.index for asset in assets], np.int64)
        width = self._places.width[chosen]
        channels = spans(self._places.first[chosen], width)
        owner = np.repeat(np.arange(len(chosen)), width)
        middle = medians(self._places.newest(index, rows[chosen], BLOCK))
        goal = self._goal(index, width, channels)
        standing = np.array([asset.latch.standing for asset in assets])
        self._trends.add(
            Batch(chosen, self._places.times(index, rows[chosen], BLOCK // 2), channels, owner, middle, goal), standing
        )
        trending = np.logical_or.reduceat(self._trends.standing()[channels], np.cumsum(width) - width)
        known = self._trending.keys() | {name for name, told in self._told.items() if WEAR in told}
        for number, (place, asset) in enumerate(zip(chosen.tolist(), assets, strict=True)):
            if trending[number] or asset.name in known:
                mine = owner == number
                yield from self._tell_wear(place, channels[mine], Goal(*(side[mine] for side in goal)))

    def _tell_wear(self, place: int, channels: Integers, goal: Goal) -> Iterable[Finding]:
        """Of one asset: its channel that is the first to reach its limit."""
        asset = self._places.assets[place]
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

    def _ended(self, condition: str, told: Bools) -> Iterable[Finding]:
        """Of the assets of which this was told, those with no channel left of which it holds."""
        for name in [name for name, standing in self._told.items() if condition in standing]:
            place = self._places.names.index(name)
            if not told[self._places.first[place] : self._places.first[place] + self._places.width[place]].any():
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


_LATER = ("absence", "absences")  # a release before this one did without
_OF_ASSETS = ("assets", "silence", "pauses", "clocks")
