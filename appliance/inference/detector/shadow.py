"""A second model that looks where the first one looks: what it would have said is compared, and nothing is told.

Of each asset it has statistics of its own, learned while it ran beside (`succession.py`). Its features are held against
them as the first model's are against theirs; where the machine has two states, these are moved by the difference of the
two models' centres.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from appliance.inference.comparison import Tally
from appliance.inference.detector import looks, states
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.autoencoder import Shapes
from appliance.inference.detector.judging import EXCEED, LOOKED, Points, Weighed, pooled
from appliance.inference.detector.latch import THRESHOLD, Latch
from appliance.inference.detector.memory import AWAY_LOOKS, LOOKS, Branch, Memory, Row


class Known(NamedTuple):
    """What a model learned of an asset."""

    channels: list[str]
    statistics: Floats  # [STATISTICS, channels]
    unit: float  # the pooled deviation that counts as 1
    learned: float  # the same, as it was learned
    mark: float  # the first model's `learned` then: where that learns anew, this is out of date
    asset: str = ""  # its name


Block = Callable[..., Floats]  # Judge.block


class Shadow:
    """`trusted`: it is the model that ran before, held against the one that runs now; else it is a candidate."""

    def __init__(self, memory: Memory, shapes: Shapes, look: int, trusted: bool) -> None:
        self.shapes, self.trusted = shapes, trusted
        self.known: dict[int, Known] = {}  # by the asset's index
        self.deciding: set[int] = set()  # assets whose scores are this model's: of a mere shadow, none
        self.ration = 1  # one look of so many is compared
        self.tally = Tally()
        self._memory, self._look = memory, look
        self._latches: dict[int, tuple[Latch, Latch]] = {}

    def begin_tally(self) -> Tally:
        """What was counted so far; it begins anew."""
        tally, self.tally = self.tally, Tally()
        return tally

    def learn(self, index: int, known: Known) -> None:
        self.known[index] = known
        self._latches[index] = (Latch(), Latch())

    def forget(self, index: int) -> None:
        self.known.pop(index, None)
        self._latches.pop(index, None)

    def look(self, points: Points, features: Floats, found: Weighed, block: Block) -> Weighed:
        """What the first model made of `points`: `features` [1, slots] and scores. What counts of it: all."""
        self._compare(points, features, found, block)
        return found

    def _compare(self, points: Points, features: Floats, found: Weighed, block: Block) -> None:
        failures, chosen = self.shapes.failures, self._chosen(points)
        if not chosen.size:
            return
        part, slots = points.only(chosen), np.repeat(np.isin(np.arange(len(points.asset)), chosen), points.width)
        mine = features[:, slots]
        theirs, active = self._features(part, block)
        self.tally.failures += self.shapes.failures - failures
        if theirs is None:
            return
        own = self._weighed(part, theirs, active, block).score
        pair = (own, found.score[chosen]) if self.trusted else (found.score[chosen], own)
        self.tally.add(*pair, THRESHOLD)
        ratio = (theirs - mine)[0, active > 0.0]
        self.tally.add_residuals(-ratio if self.trusted else ratio)
        self._latch(part, *pair)

    def _chosen(self, points: Points) -> Integers:
        """Those whose turn it is, and that it has learned."""
        turn = (points.rows // self._look + points.asset) % self.ration == 0
        index, width = points.asset.tolist(), points.width.tolist()
        known = [self._fits(one, wide) for one, wide in zip(index, width, strict=True)]
        whole = points.rows - self._memory.begin[points.asset] >= self.shapes.window
        return np.flatnonzero(turn & whole & np.array(known, bool))

    def _fits(self, index: int, width: int) -> bool:
        known = self.known.get(index)
        return known is not None and len(known.channels) == width

    def _features(self, points: Points, block: Block) -> tuple[Floats | None, Floats]:
        rows = block(points, self.shapes.window, *LOOKED)
        return self.shapes.features(rows[len(LOOKED) :], *rows[:2]), rows[2] * rows[3]

    def _weighed(self, points: Points, features: Floats, active: Floats, block: Block) -> Weighed:
        known = [self.known[index] for index in points.asset.tolist()]
        centre, fast = np.concatenate([one.statistics for one in known], axis=1)[:2, None]
        deviation = self._deviation(points, features, centre, block) * active
        nothing = np.zeros_like(deviation)
        weighed = looks.weigh(deviation, nothing, fast, nothing) * active
        return pooled(weighed, points, self._units(points, known) * EXCEED[Branch.AUTOENCODER])

    def _units(self, points: Points, known: list[Known]) -> Floats:
        """[points]"""
        return np.array([one.unit for one in known])

    def _deviation(self, points: Points, features: Floats, centre: Floats, block: Block) -> Floats:
        if not self._memory.two[points.asset].any():
            return features - centre
        first, low, high = block(points, 0, Row.SHAPE, AWAY_LOOKS, AWAY_LOOKS + LOOKS)[:, None]
        return states.nearest(features - centre + first, first, low, high)

    def _latch(self, points: Points, trusted: Floats, candidate: Floats) -> None:
        """Alarms that each would have raised, were this branch alone."""
        tally = self.tally
        places = zip(points.asset.tolist(), points.rows.tolist(), trusted.tolist(), candidate.tolist(), strict=True)
        for index, row, one, other in places:
            first, second = self._latches[index]
            stood, stands = (first.standing, second.standing)
            tally.trusted_alarms += first.step(one, row, confirm=self._look) and not stood
            tally.candidate_alarms += second.step(other, row, confirm=self._look) and not stands
