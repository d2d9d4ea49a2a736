"""What happens when an asset has had a certain number of rows: statistics are computed, channels join or return.

Statistics are frozen once learned, and nothing is learned while an alarm stands: the task waits. The one exception is
the end of the learning period itself, which is its last lesson, alarm or not.
"""

import numpy as np

from appliance.events.schema import Stage
from appliance.inference.detector import level
from appliance.inference.detector.arena import Floats
from appliance.inference.detector.asset import Asset, Event, Task
from appliance.inference.detector.autoencoder import Shapes
from appliance.inference.detector.memory import Memory, Row
from appliance.inference.detector.settings import DetectorSettings

SLACK = 40  # rows that may wait for their judgement, at least
PATIENCE = 50  # rows that a task waits for the end of an alarm


class Learning:
    """`depth` is how many rows a judgement looks back."""

    def __init__(self, settings: DetectorSettings, memory: Memory, shapes: Shapes, depth: int) -> None:
        self._settings, self._memory, self._shapes = settings, memory, shapes
        self.first_ring = _power_of_two(settings.collect_rows)
        self._learn_ring = _power_of_two(settings.learn_rows + depth)
        self._last_ring = _power_of_two(depth + SLACK)

    def begin(self, asset: Asset) -> None:
        """The lessons of a new asset."""
        asset.events = [Event(row, Task.LEARN) for row in self._settings.lessons()]

    def expect(self, asset: Asset, channel: str) -> None:
        """A channel that came after the others is watched for as long as they were."""
        asset.late.add(channel)
        asset.plan(Event(asset.rows + self._settings.learn_rows, Task.JOIN, channel))
        self.resize(asset)

    def adapt(self, asset: Asset) -> None:
        """The statistics of the autoencoder belong to another model: measure anew, judge by level until then."""
        self._memory.shape_level[asset.index] = asset.shape_score = 0.0
        asset.shape_model = ""
        if asset.stage is Stage.ALARMING and not self._shapes.silent:
            asset.plan(Event(asset.rows + self._settings.learn_rows, Task.ADAPT))
            self.resize(asset)

    def run(self, asset: Asset) -> None:
        """All tasks that are due. What is due to be judged must have been judged."""
        with np.errstate(all="ignore"):  # values near the end of the range; level.LIMIT bounds what comes of it
            self._run(asset)
        asset.stage = self._settings.stage(asset.rows)
        self.resize(asset)

    def _run(self, asset: Asset) -> None:
        while asset.events and asset.rows >= asset.events[0].row:
            event = asset.events.pop(0)
            if asset.latch.standing and asset.rows != self._settings.learn_rows and event.task is not Task.RETURN:
                self._postpone(asset, event)
            elif event.task is Task.LEARN:
                self._learn(asset)
            elif event.task is Task.JOIN:
                self._join(asset, event.channel)
            elif event.task is Task.RETURN:
                self._memory.header(asset)[Row.ACTIVE, asset.columns[event.channel]] = 1.0
            else:
                self._adapt(asset)

    def resize(self, asset: Asset) -> None:
        """Keep as many rows as the asset's plans need."""
        ring = self.ring(asset)
        if ring != asset.ring:
            self._memory.reshape(asset, ring)

    def ring(self, asset: Asset) -> int:
        """How many rows the asset's plans need."""
        if any(event.task in (Task.JOIN, Task.ADAPT) for event in asset.events):
            return self._learn_ring
        if asset.stage is Stage.COLLECTING:
            return self.first_ring
        return self._last_ring if asset.stage is Stage.ALARMING else self._learn_ring

    def _postpone(self, asset: Asset, event: Event) -> None:
        """A lesson in the middle of the learning period is simply left out."""
        if event.task is not Task.LEARN:
            asset.plan(event._replace(row=asset.rows + PATIENCE))

    def _learn(self, asset: Asset) -> None:
        founders = [column for column, channel in enumerate(asset.channels) if channel not in asset.late]
        samples = self._memory.samples(asset, asset.rows)[:, founders]
        lesson = level.learn(samples)
        self._memory.level[asset.index] = lesson.level
        self._write(asset, founders, lesson, lesson.level)
        if asset.shape_model != self._shapes.identity or asset.rows == self._settings.learn_rows:
            self._measure(asset, founders, samples, lesson)
        asset.latch.reset()

    def _join(self, asset: Asset, channel: str) -> None:
        """The pooled level grows by what the newcomer alone reached while it learned."""
        memory, column = self._memory, [asset.columns[channel]]
        samples = memory.samples(asset, self._settings.learn_rows)[:, column]
        lesson = level.learn(samples)
        pooled = float(level.pool(np.array([memory.level[asset.index], lesson.reach[0]])))
        memory.level[asset.index] = pooled
        self._write(asset, column, lesson, pooled)
        shape_level = float(memory.shape_level[asset.index])
        if shape_level > 0.0:
            reached = self._learn_shapes(asset, column, samples, lesson)
            memory.shape_level[asset.index] = float(level.pool(np.array([shape_level, reached])))
        asset.late.discard(channel)

    def _write(self, asset: Asset, columns: list[int], lesson: level.Lesson, pooled: float) -> None:
        header = self._memory.header(asset)
        header[Row.CENTRE, columns] = lesson.centre
        header[Row.WEIGHT, columns] = lesson.weight
        header[Row.SWITCH, columns] = np.where(lesson.weight > 0.0, 0.0, level.FIXED * pooled)
        header[Row.SHAPE_SCALE, columns] = lesson.scale
        header[Row.ACTIVE, columns] = [asset.channels[column] not in asset.away for column in columns]

    def _measure(self, asset: Asset, columns: list[int], samples: Floats, lesson: level.Lesson) -> None:
        """What the model makes of the asset."""
        self._memory.shape_level[asset.index] = self._learn_shapes(asset, columns, samples, lesson)
        asset.shape_score = 0.0
        asset.shape_model = self._shapes.identity if self._shapes.enough(len(samples)) else ""

    def _learn_shapes(self, asset: Asset, columns: list[int], samples: Floats, lesson: level.Lesson) -> float:
        """What these channels reached together."""
        weight, pooled = self._shapes.learn(samples, lesson.centre, lesson.scale)
        self._memory.header(asset)[Row.SHAPE_WEIGHT, columns] = weight
        return pooled

    def _adapt(self, asset: Asset) -> None:
        header = self._memory.header(asset)
        columns = [column for column, channel in enumerate(asset.channels) if channel not in asset.late]
        samples = self._memory.samples(asset, self._settings.learn_rows)[:, columns]
        centre, scale = header[Row.CENTRE, columns], header[Row.SHAPE_SCALE, columns]
        nothing = np.zeros(len(columns))
        self._measure(asset, columns, samples, level.Lesson(centre, nothing, nothing, 0.0, scale))


def _power_of_two(rows: int) -> int:
    return 1 << (rows - 1).bit_length()
