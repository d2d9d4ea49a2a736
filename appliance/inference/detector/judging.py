"""Scores of many assets with one set of numpy calls, whatever their numbers of channels.

A point is an asset at one of its rows; a slot is a channel of a point. Slots of a point lie side by side, so that
`reduceat` at the points' first slots pools them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence, Set
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.events.schema import Score, Stage
from appliance.inference.detector import autoencoder, level, looks, spread, states, upkeep
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.asset import Asset
from appliance.inference.detector.autoencoder import Shapes
from appliance.inference.detector.latch import CONFIRM_ROWS, NO_BRANCH, THRESHOLD
from appliance.inference.detector.memory import (
    AWAY_HIGH,
    AWAY_LOOKS,
    AWAY_LOW,
    HEADER,
    LOOKS,
    SEEN_LOOKS,
    STATISTICS,
    Branch,
    Memory,
    Row,
)
from appliance.inference.detector.settings import DetectorSettings

if TYPE_CHECKING:
    from appliance.inference.detector.shadow import Shadow

MAX_SLOTS = 4096  # at once: bounds the memory of a judgement
# From units of a look to those of the score.
EXCEED = {Branch.SPREAD: spread.MARGIN / THRESHOLD, Branch.AUTOENCODER: autoencoder.MARGIN / THRESHOLD}
LOOKED = (Row.CENTRE, Row.SCALE, Row.ACTIVE, Row.FRESH)  # what a look needs besides its own statistics
# First of the fading means.
LAST = {Branch.SPREAD: Row.SPREAD + 3 * spread.OCTAVES, Branch.AUTOENCODER: Row.SHAPE + 3}
NAMES = [branch.name.lower() for branch in Branch]
FEATURES = {Branch.AUTOENCODER: slice(0, 1), Branch.SPREAD: slice(1, LOOKS)}  # of all looks' features
STEADY = 2.0  # standard deviations of a channel between two looks: more is on its way
STATE = (
    "taken for another state of the machine: it came and went by itself, time after time, and nobody called it a fault"
)
STALE = 2  # learning periods before a standing alarm's state is learned, in which the rows for that are collected


class Judged(NamedTuple):
    asset: str
    score: Score


class Points(NamedTuple):
    """All arrays are [points]."""

    asset: Integers  # its index
    rows: Integers  # how many it had had
    base: Integers  # word of its block
    width: Integers  # slots
    first: Integers  # slot
    common: int  # width of all; 0 where they differ

    def only(self, chosen: Integers) -> "Points":
        width = self.width[chosen]
        first = self.first[: len(width)] if self.common else np.cumsum(width) - width
        return Points(self.asset[chosen], self.rows[chosen], self.base[chosen], width, first, self.common)

    def spread(self, values: Integers) -> Integers:
        """[slots] from [points]"""
        return values.repeat(self.common or self.width)


class Weighed(NamedTuple):
    score: Floats  # [points] pooled, in units of the learning period
    cause: Integers  # [points] the column that weighs most


class Judge:
    """`stale` is told of assets whose alarm has stood for long."""

    def __init__(
        self, memory: Memory, shapes: Shapes, settings: DetectorSettings, stale: Callable[[Asset], None]
    ) -> None:
        self._memory, self._shapes, self._hop, self._learn_rows = memory, shapes, settings.hop, settings.learn_rows
        self.look = -(-looks.STRIDE // self._hop) * self._hop  # rows between two looks: judgements, all of them
        self.depth = max(level.WINDOW, spread.WINDOW, shapes.window)  # rows that a judgement looks back
        self._stale = stale
        self.remarks: dict[str, str] = {}  # asset -> what was concluded from an alarm without anybody's word
        self.shadow: Shadow | None = None  # another model that looks where this one does
        periods = settings.accept_periods
        self._patience = max(periods - STALE, 0) * settings.learn_rows if periods else sys.maxsize

    def judge(self, assets: list[Asset], out: list[Judged]) -> None:
        """Append the judgements that are due, each asset's in the order of its rows."""
        for due, rows in self._parts(assets):
            with np.errstate(all="ignore"):  # values near the end of the range; level.LIMIT bounds what comes of it
                self._judge(due, rows, out)

    def _parts(self, assets: list[Asset]) -> Iterator[tuple[list[Asset], list[int]]]:
        """An asset's look is the last of its rows in a part: what is judged next goes by what the look has found."""
        waiting = assets
        while waiting:
            due: list[Asset] = []
            rows: list[int] = []
            slots = 0
            for asset in waiting:
                look = -(-asset.next_due // self.look) * self.look
                for row in range(asset.next_due, min(asset.rows, look) + 1, self._hop):
                    if slots and slots + asset.width > MAX_SLOTS:
                        yield due, rows
                        due, rows, slots = [], [], 0
                    due.append(asset)
                    rows.append(row)
                    slots += asset.width
                    asset.next_due = row + self._hop
            if due:
                yield due, rows
            waiting = [asset for asset in waiting if asset.next_due <= asset.rows]

    def _judge(self, due: list[Asset], rows: list[int], out: list[Judged]) -> None:
        points = self._points(due, rows)
        looked = np.flatnonzero(points.rows % self.look == 0)
        scores, causes = self._weigh(points, looked)
        branches = scores.argmax(axis=0)
        place = np.arange(len(rows))
        times = self._times(points)
        first, other, others = self._origins()
        learn_rows = self._learn_rows
        for asset, row, at, score, cause, branch in zip(
            due,
            rows,
            times.tolist(),
            scores[branches, place].tolist(),
            causes[branches, place].tolist(),
            branches.tolist(),
            strict=True,
        ):
            latch, threshold, alarm = asset.latch, THRESHOLD, False
            if score > THRESHOLD or latch.busy:
                threshold, alarm = self._decide(asset, score, row, branch, at)
            learned = row if row < learn_rows else learn_rows
            name = asset.channels[cause]
            origin = other if others and asset.index in others else first
            judgement = Score(at, score, threshold, asset.stage, name, NAMES[branch], alarm, learned, *origin)
            out.append(Judged(asset.name, judgement))
        self._conclude(due, points, looked, scores[Branch.LEVEL])
        for asset, row in [(due[place], rows[place]) for place in looked.tolist()]:
            if asset.latch.standing and row - max(asset.latch.since, self._learn_rows) >= self._patience:
                self._stale(asset)

    def _origins(self) -> tuple[tuple[str, str, str], tuple[str, str, str], Set[int]]:
        """Name, version and device of the model; those of the one beside it, and the assets that this one decides."""
        first = self._shapes.name, self._shapes.version, self._shapes.device
        if self.shadow is None or not self.shadow.deciding:
            return first, first, frozenset()
        beside = self.shadow.shapes
        return first, (beside.name, beside.version, beside.device), self.shadow.deciding

    def _conclude(self, due: list[Asset], points: Points, looked: Integers, reached: Floats) -> None:
        """What a look leaves behind, once its alarms are decided."""
        np.maximum.at(self._memory.peak, points.asset, reached)
        if not looked.size:
            return
        index, settled = points.asset[looked], points.rows[looked] > self._learn_rows
        ended = upkeep.widen(self._memory, index, settled)
        for place in looked[ended].tolist():
            due[place].latch.relieved = NO_BRANCH
        known = ended & upkeep.recurs(self._memory, index)
        if known.any():
            self._learn_state(points.only(looked[known]), [due[place].name for place in looked[known].tolist()])
        uneasy = settled & self._memory.uneasy[index]
        staying = uneasy & self._memory.steady[index]
        if staying.any():
            self._remember(points.only(looked[staying]))
        moving = settled & ~uneasy & (self._memory.follow[index] > 0.0)
        moving &= ~self._memory.two[index] | (self._memory.place_of[index] != states.BETWEEN)
        if moving.any():
            self._follow(points.only(looked[moving]))

    def _learn_state(self, points: Points, names: list[str]) -> None:
        """Where the machine stayed during alarms is another state of it, or more of the one that is known."""
        seen = self._block(points, 0, Row.SEEN_LOW, Row.SEEN_HIGH)[:, points.first]
        stayed = np.flatnonzero(seen[0] <= seen[1])
        if not stayed.size:
            return
        points = points.only(stayed)
        for place in stayed.tolist():
            self.remarks[names[place]] = STATE
        for away, seen_row, count in ((AWAY_LOW, Row.SEEN_LOW, 1), (AWAY_LOOKS, SEEN_LOOKS, LOOKS)):
            both = self._block(points, 0, *range(away, away + 2 * count), *range(seen_row, seen_row + 2 * count))
            low, high, seen_low, seen_high = both.reshape(4, count, -1)
            self._write(points, away, np.concatenate([np.minimum(low, seen_low), np.maximum(high, seen_high)]))
            self._write(points, seen_row, np.repeat([np.inf, -np.inf], count)[:, None] + np.zeros(both.shape[1]))
        states.begin(self._memory, points.asset, points.rows, self.look)

    def _remember(self, points: Points) -> None:
        """Where the channels stay while an alarm stands."""
        block = self._block(points, level.WINDOW, Row.SEEN_LOW, Row.SEEN_HIGH)
        means = level.column_sums(block[2:] * (1.0 / level.WINDOW))
        self._write(points, Row.SEEN_LOW, np.stack([np.minimum(block[0], means), np.maximum(block[1], means)]))

    def _follow(self, points: Points) -> None:
        """Where the channels belong goes a little way towards where they are; channels that never moved stay."""
        away = self._memory.two[points.asset] & (self._memory.nearer[points.asset] == states.AWAY)
        for row, chosen in ((Row.LOW, np.flatnonzero(~away)), (AWAY_LOW, np.flatnonzero(away))):
            if chosen.size:
                self._follow_state(points.only(chosen), row)

    def _follow_state(self, points: Points, row: int) -> None:
        block = self._block(points, level.WINDOW, row, row + 1, Row.WEIGHT)
        low, high, weight = block[:3]
        means = level.column_sums(block[3:] * (1.0 / level.WINDOW))
        share = np.repeat(self._memory.follow[points.asset], points.width) * (weight > 0.0)
        step = (means - np.clip(means, low, high)) * share
        self._write(points, row, np.stack([low + step, high + step]))

    def _decide(self, asset: Asset, score: float, row: int, branch: int, at: int) -> tuple[float, bool]:
        """The threshold that holds and whether the asset is abnormal."""
        if asset.stage is Stage.LEARNING:
            return THRESHOLD, False
        latch = asset.latch
        # What is held over from the last look must be over at the next one, too.
        alarm = latch.step(score, row, branch, CONFIRM_ROWS if branch == Branch.LEVEL else self.look, at)
        self._memory.uneasy[asset.index], self._memory.relieved[asset.index] = latch.uneasy, latch.relieved
        self._memory.lasting[asset.index] = latch.ended_ns >= upkeep.LONG_NS
        self._memory.reached[asset.index] = latch.ended_peak
        return THRESHOLD if alarm else latch.level(row), alarm

    def _points(self, due: list[Asset], rows: list[int]) -> Points:
        memory = self._memory
        index = np.array([asset.index for asset in due], np.int64)
        width = memory.width[index]
        common = int(width[0]) if len(due) == 1 or not np.ptp(width) else 0
        return Points(index, np.array(rows, np.int64), memory.base[index], width, width.cumsum() - width, common)

    def _weigh(self, points: Points, looked: Integers) -> tuple[Floats, Integers]:
        """Scores and causes, [branches, points]. A branch that did not look has those of its last look."""
        memory = self._memory
        scores, causes = memory.held[:, points.asset], memory.held_cause[:, points.asset]
        scores[Branch.LEVEL], causes[Branch.LEVEL] = self._level(points)
        if looked.size:
            self._locate(points.only(looked))
            index = points.asset[looked]
            strange = memory.two[index]
            if strange.any():
                strange &= points.rows[looked] < memory.moved[index] + self.depth
                scores[1:, looked[strange]] = 0.0
            shape = Branch.AUTOENCODER, self._shape, self._shapes.window
            for branch, look, window in ((Branch.SPREAD, self._spread, spread.WINDOW), shape):
                whole = points.rows[looked] - memory.begin[index] >= window
                chosen = looked[whole & ~strange & (memory.unit[branch, index] > 0.0)]
                if chosen.size:
                    scores[branch, chosen], causes[branch, chosen] = look(points.only(chosen))
            memory.held[1:, index], memory.held_cause[1:, index] = scores[1:, looked], causes[1:, looked]
        return scores, causes

    def _level(self, points: Points) -> Weighed:
        block = self._block(points, level.WINDOW, Row.LOW, Row.HIGH, Row.WEIGHT, Row.SWITCH, Row.ACTIVE)
        away = level.deviations(block[5:], *block[:5])
        found = pooled(away, points, self._memory.unit[Branch.LEVEL, points.asset])
        two = np.flatnonzero(self._memory.two[points.asset])
        if two.size:
            found.score[two], found.cause[two] = self._between(
                points.only(two), Weighed(found.score[two], found.cause[two])
            )
        return found

    def _between(self, points: Points, home: Weighed) -> Weighed:
        """Of assets with two states: against the nearer one; for a while against both and all between."""
        memory, unit = self._memory, self._memory.unit[Branch.LEVEL, points.asset]
        block = self._block(
            points, level.WINDOW, Row.LOW, Row.HIGH, AWAY_LOW, AWAY_HIGH, Row.WEIGHT, Row.SWITCH, Row.ACTIVE
        )
        lows, highs, rest, window = block[0:4:2], block[1:4:2], block[4:7], block[7:]
        away = pooled(level.deviations(window.copy(), lows[1], highs[1], *rest), points, unit)
        hull = pooled(level.deviations(window, lows.min(axis=0), highs.max(axis=0), *rest), points, unit)
        nearer = np.where(away.score < home.score, states.AWAY, states.HOME)
        apart = np.minimum(away.score, home.score)
        memory.apart[points.asset], memory.nearer[points.asset] = apart, nearer
        under_way = (apart > THRESHOLD) & states.on_its_way(memory, points.asset, points.rows)
        cause = np.where(under_way, hull.cause, np.where(nearer == states.AWAY, away.cause, home.cause))
        return Weighed(np.where(under_way, hull.score, apart), cause)

    def _locate(self, points: Points) -> None:
        """At a look: which state those with two are in, and which of those with an alarm stay where they are."""
        memory = self._memory
        two = memory.two[points.asset]
        if two.any():
            states.arrive(memory, points.asset[two], points.rows[two], self.look, self._learn_rows)
        uneasy = np.flatnonzero(memory.uneasy[points.asset])
        if uneasy.size:
            chosen = points.only(uneasy)
            known = memory.two[chosen.asset] & (memory.place_of[chosen.asset] != states.BETWEEN)
            memory.steady[chosen.asset] = self._stays(chosen) & ~known

    def _stays(self, points: Points) -> NDArray[np.bool_]:
        """Are the means of the channels where they were some rows ago?"""
        depth = level.WINDOW + looks.STRIDE
        block = self._block(points, depth, Row.SCALE, Row.ACTIVE)
        samples = block[2:] * (1.0 / level.WINDOW)
        change = level.column_sums(samples[looks.STRIDE :]) - level.column_sums(samples[: level.WINDOW])
        moved = np.fmin(np.abs(change) * block[0] * block[1], level.LIMIT)
        furthest = np.maximum.reduceat(moved, points.first)
        stays: NDArray[np.bool_] = (furthest < STEADY) & (points.rows - self._memory.begin[points.asset] >= depth)
        return stays

    def _spread(self, points: Points) -> Weighed:
        count = STATISTICS * spread.OCTAVES
        block = self._block(points, spread.WINDOW, *LOOKED, *range(Row.SPREAD, Row.SPREAD + count))
        statistics, samples = block[len(LOOKED) : len(LOOKED) + count], block[len(LOOKED) + count :]
        features = spread.octaves(samples, block[1])
        return self._look(points, Branch.SPREAD, features, statistics, block[2] * block[3])

    def _shape(self, points: Points) -> Weighed:
        block = self._block(points, self._shapes.window, *LOOKED, *range(Row.SHAPE, Row.SHAPE + STATISTICS))
        statistics, samples = block[len(LOOKED) : len(LOOKED) + STATISTICS], block[len(LOOKED) + STATISTICS :]
        features = self._shapes.features(samples, *block[:2])
        if features is None:
            held, asset = self._memory.held[Branch.AUTOENCODER], points.asset  # an alarm of it does not end by this
            return Weighed(held[asset], self._memory.held_cause[Branch.AUTOENCODER, asset])
        found = self._look(points, Branch.AUTOENCODER, features, statistics, block[2] * block[3])
        return found if self.shadow is None else self.shadow.look(points, features, found, self._block)

    def _look(self, points: Points, branch: Branch, features: Floats, statistics: Floats, active: Floats) -> Weighed:
        """`features` [features, slots] against their `statistics` [STATISTICS * features, slots]."""
        centre, fast, slow, fading = statistics.reshape(STATISTICS, len(features), -1)
        deviation = self._deviation(points, branch, features, centre) * active
        faded = np.where(active > 0.0, looks.fade(fading, deviation), fading)
        self._write(points, LAST[branch], faded)
        weighed = looks.weigh(deviation, faded, fast, slow) * active
        return pooled(weighed, points, self._memory.unit[branch, points.asset] * EXCEED[branch])

    def _deviation(self, points: Points, branch: Branch, features: Floats, centre: Floats) -> Floats:
        """From where the features are while all is well, in the state that explains them better."""
        memory, (first, last, _) = self._memory, FEATURES[branch].indices(LOOKS)
        staying = memory.uneasy[points.asset] & memory.steady[points.asset] & (points.rows > self._learn_rows)
        if staying.any():
            chosen, mine = points.only(np.flatnonzero(staying)), features[:, np.repeat(staying, points.width)]
            for row, extreme in ((SEEN_LOOKS, np.minimum), (SEEN_LOOKS + LOOKS, np.maximum)):
                before = self._block(chosen, 0, *range(row + first, row + last))
                self._write(chosen, row + first, extreme(before, mine))
        if not memory.two[points.asset].any():
            return features - centre
        rows = [
            *range(AWAY_LOOKS + first, AWAY_LOOKS + last),
            *range(AWAY_LOOKS + LOOKS + first, AWAY_LOOKS + LOOKS + last),
        ]
        low, high = self._block(points, 0, *rows).reshape(2, last - first, -1)
        return states.nearest(features, centre, low, high)

    def _write(self, points: Points, row: int, values: Floats) -> None:
        """`values` [rows, slots] into the header from `row` on."""
        stride = points.spread(points.width + 1)
        word = points.spread(points.base - points.first + row * (points.width + 1))
        word += np.arange(len(word))
        for line in values:
            self._memory.arena.words[word] = line
            word += stride

    def _block(self, points: Points, length: int, *header: int) -> Floats:
        """[headers + length, slots]: rows of the header, then the newest samples, the oldest first."""
        row = np.empty((len(header) + length, len(points.asset)), np.int64)
        row[: len(header)], ring = _column(header), row[len(header) :]
        np.add(_column(range(-length, 0)), points.rows, out=ring)
        ring &= self._memory.mask[points.asset]
        ring += HEADER
        row *= points.width + 1
        row += points.base
        return self._gather(row, points)

    def _gather(self, row: Integers, points: Points) -> Floats:
        """[rows, slots] from the first words of `row` [rows, points]."""
        if points.common:  # nearly always so
            return self._memory.arena.rows(row, points.common)
        place = np.repeat(row - points.first, points.width, axis=1)
        place += np.arange(place.shape[1])
        return self._memory.arena.words.take(place)

    def _times(self, points: Points) -> Integers:
        row = ((points.rows - 1) & self._memory.mask[points.asset]) + HEADER
        return self._memory.arena.integers.take(points.base + row * (points.width + 1) + points.width)


@cache
def _column(numbers: Sequence[int]) -> Integers:
    """[n, 1]; nobody may write to it."""
    return np.array(numbers, np.int64)[:, None]


def pooled(weighed: Floats, points: Points, unit: Floats) -> Weighed:
    """The 4-norm of each point's slots in its unit, and the column of the largest (the first of equals)."""
    fourth = weighed * weighed
    fourth *= fourth
    score = np.sqrt(np.sqrt(np.add.reduceat(fourth, points.first))) / unit
    if points.common:
        return Weighed(score, weighed.reshape(-1, points.common).argmax(axis=1))
    largest = np.maximum.reduceat(weighed, points.first)
    top = np.flatnonzero(weighed == np.repeat(largest, points.width))[::-1]
    point = np.searchsorted(points.first, top, side="right") - 1
    cause = np.zeros(len(points.first), np.int64)
    cause[point] = top - points.first[point]
    return Weighed(score, cause)
