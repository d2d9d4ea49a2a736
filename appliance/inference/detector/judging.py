"""Scores of many assets with one set of numpy calls, whatever their numbers of channels.

A point is an asset at one of its rows; a slot is a channel of a point. Slots of a point lie side by side, so that
`reduceat` at the points' first slots pools them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from appliance.events.schema import Score, Stage
from appliance.inference.detector import level
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.asset import Asset
from appliance.inference.detector.autoencoder import MARGIN, STRIDE, Shapes
from appliance.inference.detector.latch import THRESHOLD
from appliance.inference.detector.memory import HEADER, WORD, Memory, Row

MAX_SLOTS = 4096  # at once: bounds the memory of a judgement
EXCEED = MARGIN / THRESHOLD  # from units of the autoencoder to those of the score


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

    def only(self, chosen: Integers) -> "Points":
        width = self.width[chosen]
        return Points(self.asset[chosen], self.rows[chosen], self.base[chosen], width, np.cumsum(width) - width)


class Weighed(NamedTuple):
    score: Floats  # [points] pooled, in units of the learning period
    cause: Integers  # [points] the column that weighs most


class Judge:
    def __init__(self, memory: Memory, shapes: Shapes, hop: int, learn_rows: int) -> None:
        self._memory, self._shapes, self._hop, self._learn_rows = memory, shapes, hop, learn_rows
        self._look = -(-STRIDE // hop) * hop  # rows between two looks of the autoencoder: judgements, all of them

    @property
    def depth(self) -> int:
        """Rows that a judgement looks back."""
        return max(level.WINDOW, self._shapes.window)

    def judge(self, assets: list[Asset], out: list[Judged]) -> None:
        """Append the judgements that are due, each asset's in the order of its rows."""
        for due, rows in self._parts(assets):
            with np.errstate(all="ignore"):  # values near the end of the range; level.LIMIT bounds what comes of it
                self._judge(due, rows, out)

    def _parts(self, assets: list[Asset]) -> Iterator[tuple[list[Asset], list[int]]]:
        due: list[Asset] = []
        rows: list[int] = []
        slots = 0
        for asset in assets:
            for row in range(asset.next_due, asset.rows + 1, self._hop):
                if slots and slots + asset.width > MAX_SLOTS:
                    yield due, rows
                    due, rows, slots = [], [], 0
                due.append(asset)
                rows.append(row)
                slots += asset.width
                asset.next_due = row + self._hop
        if due:
            yield due, rows

    def _judge(self, due: list[Asset], rows: list[int], out: list[Judged]) -> None:
        points = self._points(due, rows)
        found = self._level(points)
        times = self._times(points)
        shapes = self._shape(points)
        origin = self._shapes.name, self._shapes.version, self._shapes.device
        learn_rows = self._learn_rows
        for place, (asset, row, at, level_score, level_cause) in enumerate(
            zip(due, rows, times.tolist(), found.score.tolist(), found.cause.tolist(), strict=True)
        ):
            if shapes and place in shapes:
                asset.shape_score, asset.shape_cause = shapes[place]
            if asset.shape_score > level_score:
                score, cause, branch = asset.shape_score, asset.shape_cause, "autoencoder"
            else:
                score, cause, branch = level_score, level_cause, "level"
            latch, threshold, alarm = asset.latch, THRESHOLD, False
            if score > THRESHOLD or latch.busy:
                threshold, alarm = _decide(asset, score, row)
            learned = row if row < learn_rows else learn_rows
            name = asset.channels[cause]
            judgement = Score(at, score, threshold, asset.stage, name, branch, alarm, learned, *origin)
            out.append(Judged(asset.name, judgement))

    def _points(self, due: list[Asset], rows: list[int]) -> Points:
        memory = self._memory
        index = np.array([asset.index for asset in due], np.int64)
        width = memory.width[index]
        return Points(index, np.array(rows, np.int64), memory.base[index], width, np.cumsum(width) - width)

    def _level(self, points: Points) -> Weighed:
        block = self._block(points, level.WINDOW, Row.CENTRE, Row.WEIGHT, Row.SWITCH, Row.ACTIVE)
        away = level.deviations(block[4:], *block[:4])
        return _pooled(away, points, self._memory.level[points.asset])

    def _shape(self, points: Points) -> dict[int, tuple[float, int]]:
        """Score and cause of the points at which the autoencoder looks."""
        if self._shapes.silent:
            return {}
        unit = self._memory.shape_level[points.asset]
        looked = np.flatnonzero((points.rows % self._look == 0) & (unit > 0.0))
        if not looked.size:
            return {}
        chosen = points.only(looked)
        block = self._block(chosen, self._shapes.window, Row.CENTRE, Row.SHAPE_SCALE, Row.SHAPE_WEIGHT, Row.ACTIVE)
        centre, scale, weight, active = block[:4]
        weighed = self._shapes.residuals(block[4:], centre, scale) * weight * active
        found = _pooled(weighed, chosen, unit[looked] * EXCEED)
        return dict(zip(looked.tolist(), zip(found.score.tolist(), found.cause.tolist(), strict=True), strict=True))

    def _block(self, points: Points, length: int, *header: Row) -> Floats:
        """[headers + length, slots]: rows of the header, then the newest samples, the oldest first."""
        row = np.empty((len(header) + length, len(points.asset)), np.int64)
        row[: len(header)] = np.array(header)[:, None]
        ring = row[len(header) :]
        np.add(np.arange(-length, 0)[:, None], points.rows, out=ring)
        ring &= self._memory.mask[points.asset]
        ring += HEADER
        row *= points.width + 1
        row += points.base
        return _gather(self._memory.arena.words, row, points)

    def _times(self, points: Points) -> Integers:
        row = ((points.rows - 1) & self._memory.mask[points.asset]) + HEADER
        return self._memory.arena.integers.take(points.base + row * (points.width + 1) + points.width)


def _gather(words: Floats, row: Integers, points: Points) -> Floats:
    """[rows, slots] from the first words of `row` [rows, points]."""
    width = int(points.width[0])
    if (points.width == width).all():
        # Nearly always so, and 4 x faster: whole rows are copied, from a view in which every word begins a row.
        rows = np.ndarray((len(words) - width + 1, width), np.float64, words.data, 0, (WORD, WORD))
        gathered: Floats = rows[row].reshape(len(row), -1)
        return gathered
    place = np.repeat(row - points.first, points.width, axis=1)
    place += np.arange(place.shape[1])
    return words.take(place)


def _decide(asset: Asset, score: float, row: int) -> tuple[float, bool]:
    """The threshold that holds and whether the asset is abnormal."""
    if asset.stage is Stage.LEARNING:
        return THRESHOLD, False
    alarm = asset.latch.step(score, row)
    return THRESHOLD if alarm else asset.latch.level(row), alarm


def _pooled(weighed: Floats, points: Points, unit: Floats) -> Weighed:
    """The 4-norm of each point's slots in its unit, and the column of the largest (the first of equals)."""
    fourth = weighed * weighed
    fourth *= fourth
    score = np.sqrt(np.sqrt(np.add.reduceat(fourth, points.first))) / unit
    largest = np.maximum.reduceat(weighed, points.first)
    top = np.flatnonzero(weighed == np.repeat(largest, points.width))[::-1]
    point = np.searchsorted(points.first, top, side="right") - 1
    cause = np.zeros(len(points.first), np.int64)
    cause[point] = top - points.first[point]
    return Weighed(score, cause)
