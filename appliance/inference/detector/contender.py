"""A second model that decides, of its share of the assets: `inference/contest.py` says which, and what is counted.

Both models learn every asset, and only from then on an asset is counted, for either of them: what a model finds hard to
learn is missing on both sides. Where the second one cannot compute, the first one's look stands, and is not counted.

What an asset shows over time widens its unit. That is kept once, as a factor of the first model's unit; the second
one's own unit is wider by the same factor. Of the assets that it decides it is its own looks that widen it.
"""

import numpy as np

from appliance.inference.contest import Contest
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.autoencoder import Shapes
from appliance.inference.detector.judging import Points, Weighed
from appliance.inference.detector.latch import THRESHOLD
from appliance.inference.detector.memory import Branch, Memory
from appliance.inference.detector.shadow import Block, Known, Shadow


class Contender(Shadow):
    def __init__(self, memory: Memory, shapes: Shapes, look: int, contest: Contest) -> None:
        super().__init__(memory, shapes, look, trusted=False)
        self.contest = contest

    def learn(self, index: int, known: Known) -> None:
        super().learn(index, known)
        if self.contest.arm(known.asset) == "b":
            self.deciding.add(index)

    def forget(self, index: int) -> None:
        super().forget(index)
        self.deciding.discard(index)

    def look(self, points: Points, features: Floats, found: Weighed, block: Block) -> Weighed:
        """Of the assets that it decides, its own scores instead of what the first model has `found`."""
        known = self._chosen(points)
        if not known.size:
            return found
        mine = np.array([index in self.deciding for index in points.asset[known].tolist()], bool)
        own = self._own(points.only(known[mine]), block) if mine.any() else None
        if own is not None:
            found.score[known[mine]], found.cause[known[mine]] = own
        counted = known if own is not None else known[~mine]
        self._count(points, counted, found.score)
        return found

    def _own(self, points: Points, block: Block) -> Weighed | None:
        """None where it cannot compute."""
        failures = self.shapes.failures
        features, active = self._features(points, block)
        self.tally.failures += self.shapes.failures - failures
        return None if features is None else self._weighed(points, features, active, block)

    def _units(self, points: Points, known: list[Known]) -> Floats:
        unit = self._memory.unit[Branch.AUTOENCODER, points.asset]
        learned = self._memory.learned[Branch.AUTOENCODER, points.asset]
        wider = np.where(learned > 0.0, unit / np.where(learned > 0.0, learned, 1.0), 1.0)
        return np.array([one.learned for one in known]) * wider

    def _count(self, points: Points, counted: Integers, scores: Floats) -> None:
        for place in counted.tolist():
            index, score = int(points.asset[place]), float(scores[place])
            latch = self._latches[index][0]
            stood = latch.standing
            stands = latch.step(score, int(points.rows[place]), confirm=self._look)
            self.contest.look(self.known[index].asset, score > THRESHOLD, stands and not stood)
