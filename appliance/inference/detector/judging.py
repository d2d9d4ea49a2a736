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
    """Where to look in the arena."""

    asset: Integers  # [points] its index
    rows: Integers  # [points] how many each had had
    width: Integers  # [points] slots
    first: Integers  # [points] first slot
    column: Integers  # [slots]
    head: Integers  # [slots] word of the block's first row
    stride: Integers  # [slots] words


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
        for place, (asset, row, at, *judged) in enumerate(
            zip(due, rows, times.tolist(), found.score.tolist(), found.cause.tolist(), strict=True)
        ):
            if place in shapes:
                asset.shape_score, asset.shape_cause = shapes[place]
            score, cause, branch = *judged, "level"
            if asset.shape_score > score:
                score, cause, branch = asset.shape_score, asset.shape_cause, "autoencoder"
            threshold, alarm = _decide(asset, score, row)
            learned = min(row, self._learn_rows)
            name = asset.channels[cause]
            judgement = Score(at, score, threshold, asset.stage, name, branch, alarm, learned, *origin)
            out.append(Judged(asset.name, judgement))

    def _points(self, due: list[Asset], rows: list[int]) -> Points:
        memory = self._memory
        index = np.array([asset.index for asset in due], np.int64)
        width = memory.width[index]
        ends = np.cumsum(width)
        first = ends - width
        slot = np.arange(int(ends[-1]))
        column = slot - np.repeat(first, width)
        head = slot + np.repeat(memory.base[index] - first, width)
        return Points(index, np.array(rows, np.int64), width, first, column, head, np.repeat(width + 1, width))

    def _level(self, points: Points) -> Weighed:
        row = self._row
        window = self._window(points, level.WINDOW)
        away = level.deviations(
            window, row(points, Row.CENTRE), row(points, Row.WEIGHT), row(points, Row.SWITCH), row(points, Row.ACTIVE)
        )
        return _pooled(away, points, self._memory.level[points.asset])

    def _shape(self, points: Points) -> dict[int, tuple[float, int]]:
        """Score and cause of the points at which the autoencoder looks."""
        if self._shapes.silent:
            return {}
        unit = self._memory.shape_level[points.asset]
        looked = np.flatnonzero((points.rows % self._look == 0) & (unit > 0.0))
        if not looked.size:
            return {}
        chosen = _choose(points, looked)
        row = self._row
        windows = self._window(chosen, self._shapes.window)
        residual = self._shapes.residuals(windows, row(chosen, Row.CENTRE), row(chosen, Row.SHAPE_SCALE))
        weighed = residual * row(chosen, Row.SHAPE_WEIGHT) * row(chosen, Row.ACTIVE)
        found = _pooled(weighed, chosen, unit[looked] * EXCEED)
        return dict(zip(looked.tolist(), zip(found.score.tolist(), found.cause.tolist(), strict=True), strict=True))

    def _window(self, points: Points, length: int) -> Floats:
        """[length, slots]: the newest rows, the oldest first."""
        memory = self._memory
        words = memory.arena.words
        ring = (points.rows - length + np.arange(length)[:, None]) & memory.mask[points.asset]
        row = (ring + HEADER) * (points.width + 1)
        width = int(points.width[0])
        if (points.width == width).all():
            # Nearly always so, and 4 x faster: whole rows are copied, from a view in which every word begins a row.
            rows = np.ndarray((len(words) - width + 1, width), np.float64, words.data, 0, (WORD, WORD))
            window: Floats = rows[row + memory.base[points.asset]].reshape(length, -1)
            return window
        place = np.repeat(row, points.width, axis=1)
        place += points.head
        return words.take(place)

    def _row(self, points: Points, row: Row) -> Floats:
        """[slots] of the blocks' headers."""
        return self._memory.arena.words.take(points.head + row * points.stride if row else points.head)

    def _times(self, points: Points) -> Integers:
        memory, index = self._memory, points.asset
        row = ((points.rows - 1) & memory.mask[index]) + HEADER
        return memory.arena.integers.take(memory.base[index] + row * (points.width + 1) + points.width)


def _decide(asset: Asset, score: float, row: int) -> tuple[float, bool]:
    """The threshold that holds and whether the asset is abnormal; its latch sees only what can change it."""
    latch = asset.latch
    if (latch.standing or score > THRESHOLD) and asset.stage is not Stage.LEARNING and latch.step(score, row):
        return THRESHOLD, True
    return latch.level(row), False


def _choose(points: Points, looked: Integers) -> Points:
    """Only these points."""
    if looked.size == len(points.asset):
        return points
    keep = np.zeros(len(points.asset), bool)
    keep[looked] = True
    slots = np.flatnonzero(np.repeat(keep, points.width))
    width = points.width[looked]
    return Points(
        points.asset[looked],
        points.rows[looked],
        width,
        np.cumsum(width) - width,
        points.column[slots],
        points.head[slots],
        points.stride[slots],
    )


def _pooled(weighed: Floats, points: Points, unit: Floats) -> Weighed:
    """The 4-norm of each point's slots in its unit, and the column of the largest (the first of equals)."""
    fourth = weighed * weighed
    fourth *= fourth
    score = np.sqrt(np.sqrt(np.add.reduceat(fourth, points.first))) / unit
    largest = np.repeat(np.maximum.reduceat(weighed, points.first), points.width)
    top = np.flatnonzero(weighed == largest)
    point = np.searchsorted(points.first, top, side="right") - 1
    cause = np.zeros(len(points.first), np.int64)
    cause[point[::-1]] = points.column[top[::-1]]
    return Weighed(score, cause)
