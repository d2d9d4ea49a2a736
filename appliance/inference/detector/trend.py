"""Slow wear: a channel that goes one way, block after block, further than it ever went, towards its limit.

    rows --median of 64--> block --mean of 2--> block of 128 --mean of 2--> ... 13 scales, the newest 12 of each

Each scale asks the same of its 12 blocks, and a trend is what says yes to all of it, three blocks running:

    new       the newest blocks are beyond all that was seen before these 12, by a fifth of its range; and what was
              seen before is more than a day, so that no hour of the day is mistaken for wear
    straight  a line leaves less than half of what the best single step leaves: a sudden change is no trend
    lasting   it still goes on at the end, at no less than a third of its pace
    near      a fifth of the way from normal to the limit is behind it, and the rest takes no more than 15 times as
              long as was watched

The finest scale that says yes tells the pace: it is the first to know, and knows best what holds now. Gaps in time are
gaps in the line. What was seen while an alarm stood, or while a trend did, does not count as seen.

Pure: times are those of readings, in seconds.
"""

from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.quality import Bools, Columns

BLOCK = 64  # rows of the finest block
STEP = 2  # blocks of a scale are one of the next
SCALES = 13
KEPT = 12  # blocks of a scale
SEEN_S = 30 * 3600.0  # before the window
SEEN_BLOCKS = 36
BEYOND = 0.2  # of the range seen before
STRAIGHT = 0.5  # of the best step's residual
PACE = 0.33  # of the line's slope, at the end
ALONG = 0.2  # of the way from normal to the limit
HORIZON = 15.0  # windows
PERSIST = 3  # blocks
_EDGE = 3  # newest blocks that are looked at together
_LARGEST = float(np.finfo(np.float32).max) / 64
_DAY_S = 86_400.0

Singles = NDArray[np.float32]


class Trend(NamedTuple):
    """Of one channel."""

    value: float  # where the line is at the newest block
    per_day: float
    limit: float
    left_s: float  # until the limit; 0: reached


class Clocks(Columns):
    """Of each asset: when its blocks were."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "at_s": ("<f8", (SCALES, KEPT), 0.0),  # the middle of each block, the oldest first
        "blocks": ("<i8", (SCALES,), 0),  # so far
        "began_s": ("<f8", (), 0.0),  # the first block
    }
    at_s: Floats
    blocks: Integers
    began_s: Floats


class Paths(Columns):
    """Of each channel: where it went, as differences from `origin`."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "origin": ("<f8", (), np.nan),
        "blocks": ("<f4", (SCALES, KEPT), 0.0),
        "low": ("<f4", (SCALES,), np.inf),  # of the blocks before these
        "high": ("<f4", (SCALES,), -np.inf),
        "held": ("i1", (SCALES,), 0),  # how often the answer was yes lately, at most PERSIST
        "standing": ("?", (SCALES,), 0),
        "unseen": ("i1", (SCALES,), 0),  # so many blocks that leave the window do not count as seen
    }
    origin: Floats
    blocks: Singles
    low: Singles
    high: Singles
    held: NDArray[np.int8]
    standing: Bools
    unseen: NDArray[np.int8]


class Goal(NamedTuple):
    """Of each channel: where normal is and where it ends. Not finite: there is no such end."""

    centre: Floats
    low: Floats
    high: Floats


class Batch(NamedTuple):
    """Blocks that are added: one of each asset, `values` of the channels of all of them, side by side."""

    assets: Integers
    at_s: Floats  # [assets]
    channels: Integers
    owner: Integers  # [channels] which of `assets`
    values: Floats  # [channels] from `Paths.origin`
    goal: Goal  # of the channels

    def only(self, chosen: Bools, at_s: Floats, values: Floats) -> "Batch":
        """Of the assets `chosen`, one scale up."""
        kept = chosen[self.owner]
        place = np.cumsum(chosen) - 1
        goal = Goal(*(side[kept] for side in self.goal))
        return Batch(self.assets[chosen], at_s, self.channels[kept], place[self.owner[kept]], values[kept], goal)


def medians(block: Floats) -> Floats:
    """[channels] of an even number of rows [rows, channels]. numpy's own looks for NaN and takes five times as long."""
    half = len(block) // 2
    middle: Floats = np.sort(block, axis=0)[half - 1 : half + 1].mean(axis=0)
    return middle


class Trends:
    def __init__(self) -> None:
        self.clocks, self.paths = Clocks(), Paths()

    def rearrange(self, assets: Integers, channels: Integers) -> None:
        self.clocks.rearrange(assets)
        self.paths.rearrange(channels)

    def add(self, new: Batch, frozen: Bools) -> None:
        """`values` of `new` are medians of BLOCK rows as they are. `frozen` [assets]: an alarm stands."""
        paths, clocks = self.paths, self.clocks
        assets, channels = new.assets, new.channels
        first = np.isnan(paths.origin[channels])
        paths.origin[channels[first]] = new.values[first]
        with np.errstate(over="ignore"):
            values = np.clip(new.values - paths.origin[channels], -_LARGEST, _LARGEST)
        begun = clocks.blocks[assets, 0] == 0
        clocks.began_s[assets[begun]] = new.at_s[begun]
        paths.unseen[channels[frozen[new.owner]]] = KEPT
        batch = new._replace(values=values)
        for scale in range(SCALES):
            self._push(scale, batch)
            self._ask(scale, batch)
            up = clocks.blocks[batch.assets, scale] % STEP == 0
            if not up.any():
                return
            at_s = clocks.at_s[batch.assets[up], scale, -STEP:].mean(axis=1)
            batch = batch.only(up, at_s, paths.blocks[batch.channels, scale, -STEP:].mean(axis=1, dtype=np.float64))

    def standing(self) -> Bools:
        """[channels]"""
        return np.asarray(self.paths.standing.any(axis=1))

    def trend(self, asset: int, channel: int, goal: Goal) -> Trend | None:
        """What stands, in the words of its finest scale; None where nothing does. `goal` is of this channel."""
        scales = np.flatnonzero(self.paths.standing[channel])
        if not scales.size:
            return None
        scale = int(scales[0])
        newest = slice(KEPT // 3, None)  # the beginning of the wear may be in the window
        at_s = self.clocks.at_s[asset, scale]
        line = _lines((at_s - at_s[-1])[None, newest], self.paths.blocks[None, channel, scale, newest].astype(float))
        slope, value = float(line.slope[0]), float(self.paths.origin[channel] + line.end[0])
        limit = float((goal.high if slope > 0.0 else goal.low)[0])
        left_s = (limit - value) / slope if slope else np.inf
        return Trend(value, slope * _DAY_S, limit, max(left_s, 0.0))

    def accept(self, channels: Integers) -> None:
        """As far as they have gone is normal."""
        paths = self.paths
        blocks = paths.blocks[channels]
        paths.low[channels] = np.minimum(paths.low[channels], blocks.min(axis=(1, 2))[:, None])
        paths.high[channels] = np.maximum(paths.high[channels], blocks.max(axis=(1, 2))[:, None])
        paths.held[channels], paths.standing[channels], paths.unseen[channels] = 0, False, 0

    def _push(self, scale: int, batch: Batch) -> None:
        paths, clocks = self.paths, self.clocks
        assets, channels = batch.assets, batch.channels
        leaving = (clocks.blocks[assets, scale] >= KEPT)[batch.owner] & (paths.unseen[channels, scale] == 0)
        out = channels[leaving]
        left = paths.blocks[out, scale, 0]
        paths.low[out, scale] = np.minimum(paths.low[out, scale], left)
        paths.high[out, scale] = np.maximum(paths.high[out, scale], left)
        paths.unseen[channels, scale] = np.maximum(paths.unseen[channels, scale] - 1, 0)
        clocks.at_s[assets, scale] = np.roll(clocks.at_s[assets, scale], -1, axis=1)
        clocks.at_s[assets, scale, -1] = batch.at_s
        clocks.blocks[assets, scale] += 1
        paths.blocks[channels, scale] = np.roll(paths.blocks[channels, scale], -1, axis=1)
        paths.blocks[channels, scale, -1] = batch.values

    def _ask(self, scale: int, batch: Batch) -> None:
        """Once more, of these channels."""
        paths, clocks = self.paths, self.clocks
        at_s = clocks.at_s[batch.assets, scale]
        enough = clocks.blocks[batch.assets, scale] >= KEPT + SEEN_BLOCKS
        enough &= at_s[:, 0] - clocks.began_s[batch.assets] >= SEEN_S
        asked = np.flatnonzero(enough[batch.owner])
        channels = batch.channels[asked]
        yes: Bools = self._new(scale, channels)
        some = asked[yes]
        if some.size:
            goal = Goal(*(side[some] - paths.origin[batch.channels[some]] for side in batch.goal))
            at_s = at_s[batch.owner[some]]
            yes[yes] = _wears(at_s - at_s[:, -1:], paths.blocks[batch.channels[some], scale].astype(float), goal)
        held = np.clip(paths.held[channels, scale] + np.where(yes, 1, -1), 0, PERSIST)
        standing = (held == PERSIST) | (paths.standing[channels, scale] & (held > 0))
        paths.held[channels, scale], paths.standing[channels, scale] = held, standing
        paths.unseen[channels[standing]] = KEPT

    def _new(self, scale: int, channels: Integers) -> Bools:
        paths = self.paths
        edge = np.median(paths.blocks[channels, scale, -_EDGE:], axis=1)
        low, high = paths.low[channels, scale], paths.high[channels, scale]
        with np.errstate(invalid="ignore"):  # nothing was seen: infinite
            room = BEYOND * (high - low)
            beyond: Bools = np.isfinite(room) & ((edge > high + room) | (edge < low - room))
        return beyond


class _Line(NamedTuple):
    """Of each of n: the line through its values."""

    slope: Floats
    end: Floats  # at the newest
    residual: Floats  # sum of squares


def _lines(at_s: Floats, values: Floats) -> _Line:
    """Least squares through `values` [n, k] at `at_s` [n, k]."""
    time = at_s - at_s.mean(axis=1, keepdims=True)
    mean = values.mean(axis=1)
    spread = np.square(time).sum(axis=1)
    slope = (time * values).sum(axis=1) / np.where(spread > 0.0, spread, np.inf)
    left = values - mean[:, None] - slope[:, None] * time
    return _Line(slope, mean + slope * time[:, -1], np.square(left).sum(axis=1))


def _best_step(values: Floats) -> Floats:
    """[n] the sum of squares that the best single step leaves of `values` [n, k]."""
    count = values.shape[1]
    centred = values - values.mean(axis=1, keepdims=True)
    before = np.cumsum(centred, axis=1)[:, :-1]  # what follows sums up to its negative
    rows = np.arange(1, count)
    explained = np.square(before) * (1.0 / rows + 1.0 / (count - rows))
    left: Floats = np.square(centred).sum(axis=1) - explained.max(axis=1)
    return left


def _wears(at_s: Floats, values: Floats, goal: Goal) -> Bools:
    """[n] straight, lasting and near: of `values` [n, KEPT] at `at_s` (0: the newest)."""
    line = _lines(at_s, values)
    straight = (line.residual < STRAIGHT * _best_step(values)) & (line.slope != 0.0)
    third = KEPT // 3
    early, middle, late = (values[:, start : start + third].mean(axis=1) for start in range(0, KEPT, third))
    times = [at_s[:, start : start + third].mean(axis=1) for start in range(0, KEPT, third)]
    pace = (late - middle) / np.where(times[2] > times[1], times[2] - times[1], np.inf)
    lasting = (pace * np.sign(line.slope) >= PACE * np.abs(line.slope)) & ((middle - early) * line.slope > 0.0)
    limit = np.where(line.slope > 0.0, goal.high, goal.low)
    way, gone = limit - goal.centre, line.end - goal.centre
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        left_s = (limit - line.end) / line.slope
        near = (gone / way >= ALONG) & (left_s <= -HORIZON * at_s[:, 0]) & np.isfinite(way)
    found: Bools = straight & lasting & near
    return found


def wear_text(channel: str, trend: Trend) -> str:
    """One sentence with the estimate."""
    verb = "rises" if trend.per_day > 0.0 else "falls"
    head = f"{channel} {verb} by {abs(trend.per_day):.3g} a day"
    if not trend.left_s:
        return f"{head} and has reached its limit {trend.limit:.4g}"
    return f"{head}; it reaches its limit {trend.limit:.4g} in about {span_text(trend.left_s)}"


def span_text(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 2.0 else f"{seconds:.2g} s"
