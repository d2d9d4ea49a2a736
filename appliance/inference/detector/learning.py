"""What happens when an asset has had a certain number of rows: statistics are computed, channels join or return.

Statistics are frozen once learned, and nothing is learned while an alarm stands: the task waits. There are two
exceptions. The end of the learning period itself is its last lesson, alarm or not. And an alarm that has stood for many
learning periods and a day, without anybody doing anything about it, is how the machine is now: its last period is
learned as another normal state; what a person accepts is so at once. From then on the centres follow the machine
slowly, because it has shown that it moves.
"""

import numpy as np

from appliance.events.schema import Stage
from appliance.inference.detector import level, looks, spread, states
from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.asset import Asset, Event, Task
from appliance.inference.detector.autoencoder import Shapes
from appliance.inference.detector.judging import Judge
from appliance.inference.detector.memory import AWAY_HIGH, AWAY_LOOKS, AWAY_LOW, LOOKS, SEEN_LOOKS, Branch, Memory, Row
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.upkeep import WIDER, WIDEST

SLACK = 40  # rows that may wait for their judgement, at least
STALE_ROWS = 8  # for which a channel may be held before nothing is concluded from its quiet
GAP_ROWS = 8  # rows whose time is a gap, at the mean pace of the learning period
GAP_LARGEST = 4  # times the longest pause in it
GAP_NS = 1_000_000_000  # and no less
PATIENCE = 50  # rows that a task waits for the end of an alarm
WHITE = 0.25  # half logarithms of energy: an octave so close to white noise is independent of the pace
FEWEST_ACCEPTED = 32  # rows, when a person says that the present state is normal
_SEEN = [Row.SEEN_LOW, Row.SEEN_HIGH, *range(SEEN_LOOKS, SEEN_LOOKS + 2 * LOOKS)]
_LONG = (Task.JOIN, Task.ADAPT, Task.ACCEPT, Task.REFINE, Task.PACE)  # they look at a whole learning period
HOUR = 3_600_000_000_000  # ns
FOLLOW = 1.5  # learning periods in which a centre makes up for most of a change


class Learning:
    def __init__(self, settings: DetectorSettings, memory: Memory, shapes: Shapes, judge: Judge) -> None:
        self._settings, self._memory, self._shapes = settings, memory, shapes
        self._look = judge.look
        self.remarks = judge.remarks
        self.watched: set[int] = set()  # indices of assets that keep a learning period of rows for another model
        self.first_ring = _power_of_two(settings.collect_rows)
        self.fit(judge.depth)

    def fit(self, depth: int) -> None:
        """Judgements look back so many rows."""
        self._learn_ring = _power_of_two(self._settings.learn_rows + depth)
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
        self._memory.learn(asset, Branch.AUTOENCODER, 0.0)
        asset.shape_model = ""
        asset.events = [event for event in asset.events if event.task is not Task.ADAPT]
        if asset.stage is Stage.ALARMING and not self._shapes.silent:
            asset.plan(Event(asset.rows + self._settings.learn_rows, Task.ADAPT))
            self.resize(asset)

    def carry(self, asset: Asset, statistics: Floats, unit: float, learned: float) -> None:
        """Another model judges, and this is what it has learned of the asset: [STATISTICS, channels], its unit now and
        as it was learned."""
        memory, index = self._memory, asset.index
        self._shift_states(asset, statistics[0] - memory.header(asset)[Row.SHAPE])
        memory.header(asset)[Row.SHAPE : Row.SHAPE + len(statistics)] = statistics
        memory.unit[Branch.AUTOENCODER, index], memory.learned[Branch.AUTOENCODER, index] = unit, learned
        asset.shape_model = self._shapes.identity
        asset.events = [event for event in asset.events if event.task is not Task.ADAPT]

    def _shift_states(self, asset: Asset, shift: Floats) -> None:
        """Where the residual is in another state of the machine moves with where it is in the first one."""
        header = self._memory.header(asset)
        for row in (AWAY_LOOKS, AWAY_LOOKS + LOOKS, SEEN_LOOKS, SEEN_LOOKS + LOOKS):
            header[row] += shift

    def expect_pace(self, asset: Asset) -> None:
        """It comes at another pace. What looked like white noise does so at any pace; for others looks wait, and
        their means may go as far as they do themselves, until they have been seen for long enough."""
        header = self._memory.header(asset)
        centre, fast = (header[Row.SPREAD + part * spread.OCTAVES :][: spread.OCTAVES] for part in range(2))
        white = ((np.abs(centre) < WHITE) & (fast > 0.0)).all(axis=0)
        for first, features in ((Row.SPREAD, spread.OCTAVES), (Row.SHAPE, 1)):
            header[first + features : first + 3 * features] *= white
        header[Row.WEIGHT] = np.where(white, header[Row.WEIGHT], np.minimum(header[Row.WEIGHT], header[Row.SCALE]))
        self._memory.held[:, asset.index] = 0.0
        asset.pace.relearn()
        asset.plan(Event(asset.rows + self._settings.learn_rows, Task.PACE))
        self.resize(asset)

    def expect_acceptance(self, asset: Asset) -> None:
        """An alarm has stood for long: watch the machine, and learn its state if the alarm outlasts that."""
        row = asset.latch.since + self._settings.accept_periods * self._settings.learn_rows
        asset.plan(Event(max(row, asset.rows + self._settings.learn_rows), Task.ACCEPT))
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
            if event.task is Task.ACCEPT:
                self._accept(asset)
            elif asset.latch.standing and asset.rows != self._settings.learn_rows and event.task is not Task.RETURN:
                self._postpone(asset, event)
            elif event.task is Task.LEARN:
                self._learn(asset)
            elif event.task is Task.REFINE:
                self._learn_anew(asset, self._settings.learn_rows)
            elif event.task is Task.PACE:
                self._learn_pace(asset)
            elif event.task is Task.JOIN:
                self._join(asset, event.channel)
            elif event.task is Task.RETURN:
                self._memory.header(asset)[[Row.ACTIVE, Row.FRESH], asset.columns[event.channel]] = 1.0
            else:
                self._adapt(asset)

    def resize(self, asset: Asset) -> None:
        """Keep as many rows as the asset's plans need."""
        ring = self.ring(asset)
        if ring != asset.ring:
            self._memory.reshape(asset, ring)

    def ring(self, asset: Asset) -> int:
        """How many rows the asset's plans need."""
        if asset.index in self.watched or any(event.task in _LONG for event in asset.events):
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
        self._memory.two[asset.index] = False
        self._memory.learn(asset, Branch.LEVEL, lesson.level)
        self._write(asset, founders, lesson, lesson.level)
        self._memory.learn(asset, Branch.SPREAD, self._learn_spread(asset, founders, samples, lesson).level)
        asset.gap = _gap(self._memory.times(asset, asset.rows))
        if asset.shape_model != self._shapes.identity or asset.rows == self._settings.learn_rows:
            self._measure(asset, founders, samples, lesson)
        if asset.rows >= self._settings.learn_rows:
            asset.pace.learn(self._memory.times(asset, asset.rows), asset.rows)
        self._memory.calm(asset)

    def _learn_pace(self, asset: Asset) -> None:
        """How far channels wander and what their looks give at another pace; they belong where they did."""
        memory, rows = self._memory, self._settings.learn_rows
        columns = [column for column, channel in enumerate(asset.channels) if channel not in asset.late]
        places = np.ix_([Row.LOW, Row.HIGH], columns)
        low, high = memory.header(asset)[places]
        samples, times = memory.samples(asset, rows)[:, columns], memory.times(asset, rows)
        lesson = level.learn(samples)
        memory.learn(asset, Branch.LEVEL, lesson.level)
        self._write(asset, columns, lesson, lesson.level)
        memory.header(asset)[places] = np.minimum(low, lesson.centre), np.maximum(high, lesson.centre)
        memory.header(asset)[AWAY_LOOKS : AWAY_LOOKS + 2 * LOOKS] = memory.header(asset)[_SEEN[2:]]
        memory.learn(asset, Branch.SPREAD, self._learn_spread(asset, columns, samples, lesson).level)
        self._measure(asset, columns, samples, lesson)
        asset.pace.learn(times, asset.rows)
        asset.gap = _gap(times)
        memory.calm(asset)

    def _join(self, asset: Asset, channel: str) -> None:
        """The pooled level grows by what the newcomer alone reached while it learned."""
        memory, column = self._memory, [asset.columns[channel]]
        samples = memory.samples(asset, self._settings.learn_rows)[:, column]
        lesson = level.learn(samples)
        self._grow(asset, Branch.LEVEL, float(lesson.reach[0]))
        self._write(asset, column, lesson, float(memory.unit[Branch.LEVEL, asset.index]))
        memory.header(asset)[AWAY_LOW : AWAY_HIGH + 1, column] = lesson.centre  # where the others know two states
        self._grow(asset, Branch.SPREAD, float(self._learn_spread(asset, column, samples, lesson).reach[0]))
        if memory.unit[Branch.AUTOENCODER, asset.index] > 0.0:
            self._grow(asset, Branch.AUTOENCODER, float(self._learn_shapes(asset, column, samples, lesson).reach[0]))
        asset.late.discard(channel)

    def _grow(self, asset: Asset, branch: Branch, reached: float) -> None:
        memory, index = self._memory, asset.index
        for units in (memory.unit, memory.learned):
            if units[branch, index] > 0.0:
                units[branch, index] = float(level.pool(np.array([units[branch, index], reached])))

    def _accept(self, asset: Asset) -> None:
        """Learn the state in which an alarm stands; what was learned as ordinary movement before stays ordinary."""
        periods, learn_rows = self._settings.accept_periods, self._settings.learn_rows
        stood = asset.rows - asset.latch.since
        if not asset.latch.standing or stood < periods * learn_rows:
            return
        if stood * self._pace(asset) >= self._settings.accept_hours * HOUR:
            self._learn_anew(asset, learn_rows)
            hours = stood * self._pace(asset) / HOUR
            self.remarks[asset.name] = f"taken for normal: it stood for {hours:.3g} h, and nobody called it a fault"
        else:
            asset.plan(Event(asset.rows + learn_rows, Task.ACCEPT))

    def _pace(self, asset: Asset) -> float:
        """The time from row to row in the last learning period, in ns."""
        times = self._memory.times(asset, min(asset.rows, self._settings.learn_rows))
        return max(int(times[-1] - times[0]), 0) / max(len(times) - 1, 1)

    def accept(self, asset: Asset) -> None:
        """At once, because a person says so: from what has been seen of the state, and again when a learning period of
        it has been. What is due to be judged must have been judged."""
        if asset.stage is not Stage.ALARMING:
            self._memory.calm(asset)
            if asset.stage is not Stage.COLLECTING:
                self._learn(asset)
            return
        seen = asset.rows - asset.latch.since if asset.latch.standing else FEWEST_ACCEPTED
        with np.errstate(all="ignore"):
            self._learn_anew(asset, min(max(seen, FEWEST_ACCEPTED), asset.ring, self._settings.learn_rows))
        asset.events = [event for event in asset.events if event.task not in (Task.ACCEPT, Task.REFINE)]
        asset.plan(Event(asset.rows + self._settings.learn_rows, Task.REFINE))
        self.resize(asset)

    def _learn_anew(self, asset: Asset, rows: int) -> None:
        memory, index = self._memory, asset.index
        columns = [column for column, channel in enumerate(asset.channels) if channel not in asset.late]
        weights = [Row.WEIGHT, *range(Row.SPREAD + spread.OCTAVES, Row.SPREAD + 3 * spread.OCTAVES)]
        known, whole = bool(memory.two[index]), memory.header(asset)[:, columns].copy()
        before, units = memory.header(asset)[np.ix_(weights, columns)], memory.unit[:, index].copy()
        samples = memory.samples(asset, rows)[:, columns]
        lesson = level.learn(samples)
        lesson = lesson._replace(scale=np.where(whole[Row.SCALE] > 0.0, whole[Row.SCALE], lesson.scale))
        memory.learn(asset, Branch.LEVEL, lesson.level)
        self._write(asset, columns, lesson, lesson.level)
        memory.learn(asset, Branch.SPREAD, self._learn_spread(asset, columns, samples, lesson).level)
        self._measure(asset, columns, samples, lesson)
        header = memory.header(asset)
        now = header[np.ix_(weights, columns)]
        both = (before > 0.0) & (now > 0.0)
        header[np.ix_(weights, columns)] = np.where(both, np.minimum(before, now), np.maximum(before, now))
        self._add_state(asset, columns, whole, known)
        header[Row.SWITCH, columns] = np.where(before[0] > 0.0, 0.0, header[Row.SWITCH, columns])
        wider = np.minimum(WIDER * units, WIDEST * memory.learned[:, index])
        memory.unit[:, index] = np.maximum(memory.unit[:, index], wider)
        memory.follow[index] = min(self._look / (FOLLOW * self._settings.learn_rows), 0.5)
        self._memory.calm(asset)

    def _add_state(self, asset: Asset, columns: list[int], before: Floats, known: bool) -> None:
        """What has just been learned is the other state, or more of it; that of `before` is home."""
        header, moved = self._memory.header(asset), before[Row.SCALE] > 0.0
        centres = [Row.SHAPE, *range(Row.SPREAD, Row.SPREAD + spread.OCTAVES)]
        for low, high, found in (
            ([AWAY_LOW], [AWAY_HIGH], [Row.CENTRE]),
            (range(AWAY_LOOKS, AWAY_LOOKS + LOOKS), range(AWAY_LOOKS + LOOKS, AWAY_LOOKS + 2 * LOOKS), centres),
        ):
            now = header[np.ix_(found, columns)]
            header[np.ix_(low, columns)] = np.minimum(before[low], now) if known else now
            header[np.ix_(high, columns)] = np.maximum(before[high], now) if known else now
        home = [Row.LOW, Row.HIGH]
        header[np.ix_(home, columns)] = before[home]
        header[np.ix_(centres, columns)] = np.where(moved, before[centres], header[np.ix_(centres, columns)])
        index, rows = np.array([asset.index]), np.array([asset.rows])
        states.begin(self._memory, index, rows, self._look)

    def _learn_spread(self, asset: Asset, columns: list[int], samples: Floats, lesson: level.Lesson) -> looks.Lesson:
        found = spread.learn(samples, asset.rows, lesson.scale)
        statistics = np.concatenate([found.centre, found.fast, found.slow, found.fading])
        self._memory.header(asset)[Row.SPREAD : Row.SPREAD + len(statistics), columns] = statistics
        return found

    def _write(self, asset: Asset, columns: list[int], lesson: level.Lesson, pooled: float) -> None:
        header = self._memory.header(asset)
        for row in (Row.CENTRE, Row.LOW, Row.HIGH):
            header[row, columns] = lesson.centre
        header[Row.SEEN_LOW, columns], header[Row.SEEN_HIGH, columns] = np.inf, -np.inf
        header[SEEN_LOOKS : SEEN_LOOKS + LOOKS, columns] = np.inf
        header[SEEN_LOOKS + LOOKS : SEEN_LOOKS + 2 * LOOKS, columns] = -np.inf
        if not self._memory.two[asset.index]:
            header[AWAY_LOW : AWAY_LOOKS + 2 * LOOKS, columns] = header[_SEEN, :][:, columns]
        header[Row.WEIGHT, columns] = lesson.weight
        header[Row.SWITCH, columns] = np.where(lesson.weight > 0.0, 0.0, level.FIXED * pooled)
        header[Row.SCALE, columns] = lesson.scale
        header[Row.FRESH, columns] = [asset.missing.get(asset.channels[column], 0) < STALE_ROWS for column in columns]
        header[Row.ACTIVE, columns] = [asset.channels[column] not in asset.away for column in columns]

    def _measure(self, asset: Asset, columns: list[int], samples: Floats, lesson: level.Lesson) -> None:
        """What the model makes of the asset."""
        found = self._learn_shapes(asset, columns, samples, lesson)
        self._memory.learn(asset, Branch.AUTOENCODER, found.level)
        enough = self._shapes.enough(len(samples))
        asset.shape_model = self._shapes.identity if enough and found.level else ""
        if enough and not found.level and asset.rows >= self._settings.learn_rows:
            asset.plan(Event(asset.rows + self._settings.learn_rows, Task.ADAPT))  # the model failed: once more

    def _learn_shapes(self, asset: Asset, columns: list[int], samples: Floats, lesson: level.Lesson) -> looks.Lesson:
        found = self._shapes.learn(samples, asset.rows, lesson.centre, lesson.scale)
        statistics = np.concatenate([found.centre, found.fast, found.slow, found.fading])
        self._memory.header(asset)[Row.SHAPE : Row.SHAPE + len(statistics), columns] = statistics
        return found

    def _adapt(self, asset: Asset) -> None:
        header = self._memory.header(asset)
        columns = [column for column, channel in enumerate(asset.channels) if channel not in asset.late]
        samples = self._memory.samples(asset, self._settings.learn_rows)[:, columns]
        centre, scale = header[Row.CENTRE, columns], header[Row.SCALE, columns]
        nothing, before = np.zeros(len(columns)), header[Row.SHAPE].copy()
        self._measure(asset, columns, samples, level.Lesson(centre, nothing, nothing, 0.0, scale))
        if self._memory.unit[Branch.AUTOENCODER, asset.index] > 0.0:
            self._shift_states(asset, header[Row.SHAPE] - before)


def _gap(times: Integers) -> int:
    """What is a gap after rows of these times, in ns. Rows that were given the time of their arrival come in bursts."""
    between = np.diff(times)
    return max(GAP_ROWS * max(int(times[-1] - times[0]), 0) // len(between), GAP_LARGEST * int(between.max()), GAP_NS)


def _power_of_two(rows: int) -> int:
    return 1 << (rows - 1).bit_length()
