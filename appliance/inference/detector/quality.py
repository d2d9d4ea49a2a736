"""What is wrong with readings themselves: they stay away, a channel stands still, a value leaves its declared range.

Arrays over all assets or channels at once; `rounds` calls them about once a second and names what they find. Times are
lengths in seconds, never moments: a clock that is set changes nothing.

What ends by itself and comes again just as long, three times running, is a habit (a machine that is off at night) and
is not told any more; what a person calls normal is so at once.
"""

from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.arena import Floats, Integers

Bools = NDArray[np.bool_]

PATIENCE_S = 60.0  # of silence, at least
PERIODS = 20.0  # of silence, in units of the time between two readings
PAUSES = 3.0  # of silence, in units of the longest pause that was ordinary
FEWEST_ROWS = 60  # of one and the same value, at least
REPETITIONS = 5.0  # in units of the longest repetition that was ordinary
BUSY = 0.1  # share of the rows at which a channel must change to be held to it: setpoints and switches do not
FEWEST_VALUES = 4  # different ones, for the same reason
OFF_DELAY_S = 10.0  # that a value must be back in its range
HABIT = 3  # times
LIKE = 1.5  # times as long, or as short, is the same
ROOM = 1.2  # times a habit's length is still the habit
_SETTLING = 100.0  # rows over which the period is a mean


def rearranged(array: NDArray[np.generic], source: Integers, fill: float) -> NDArray[np.generic]:
    """`array` with its first axis in another order: row `source[i]` comes to place i, a new one where it is -1."""
    shape = (len(source), *array.shape[1:])
    result = np.full(shape, fill, array.dtype)
    kept = source >= 0
    result[kept] = array[source[kept]]
    return result


class Columns:
    """Arrays of one length, one place for each asset or channel. `FILLS`: what each begins with."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]]  # name -> dtype, inner shape, value

    def __init__(self) -> None:
        for name, (kind, shape, _) in self.FILLS.items():
            setattr(self, name, np.zeros((0, *shape), kind))

    def rearrange(self, source: Integers) -> None:
        for name, (_, _, fill) in self.FILLS.items():
            setattr(self, name, rearranged(getattr(self, name), source, fill))

    def dump(self) -> dict[str, bytes]:
        return {name: getattr(self, name).tobytes() for name in self.FILLS}

    def load(self, data: dict[str, bytes], count: int) -> None:
        """ValueError, KeyError where it is not what `dump` made for `count` places."""
        for name, (kind, shape, _) in self.FILLS.items():
            setattr(self, name, np.frombuffer(data[name], kind).reshape(count, *shape).copy())


class Habits(Columns):
    """Lengths of what was told and ended by itself."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "length": ("<f8", (), 0.0),
        "times": ("<i8", (), 0),
    }
    length: Floats
    times: Integers

    def ended(self, place: Integers, length: Floats) -> Bools:
        """Which of those that ended now have become a habit."""
        before = self.length[place]
        alike = (length <= LIKE * before) & (before <= LIKE * length)
        self.times[place] = np.where(alike, self.times[place] + 1, 1)
        self.length[place] = np.where(alike, np.maximum(before, length), length)
        found: Bools = self.times[place] >= HABIT
        return found


class Silence(Columns):
    """Of each asset, or channel: for how long it has said nothing."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "silent_s": ("<f8", (), 0.0),
        "period_s": ("<f8", (), 0.0),
        "longest_s": ("<f8", (), 0.0),
        "rows": ("<f8", (), 0.0),
        "told": ("?", (), 0),
    }
    silent_s: Floats
    period_s: Floats
    longest_s: Floats
    rows: Floats  # that the period is a mean of
    told: Bools

    def __init__(self) -> None:
        super().__init__()
        self.habits = Habits()

    def rearrange(self, source: Integers) -> None:
        super().rearrange(source)
        self.habits.rearrange(source)

    def limit_s(self) -> Floats:
        """[assets]"""
        limit: Floats = np.maximum(np.maximum(PATIENCE_S, PERIODS * self.period_s), PAUSES * self.longest_s)
        return limit

    def step(self, gained: Integers, step_s: float | Floats, known: Bools) -> Integers:
        """Those whose state of being told has changed. `gained` rows each in `step_s`; only `known` ones are missed."""
        self.silent_s += step_s
        back = np.flatnonzero(gained)
        before = self.told.copy()
        self._hear(back, gained[back].astype(float))
        self.told |= known & (self.silent_s > self.limit_s())
        return np.flatnonzero(self.told != before)

    def accept(self, place: int) -> None:
        """So long a silence is normal."""
        self.longest_s[place] = max(self.longest_s[place], self.silent_s[place] * ROOM / PAUSES)
        self.told[place] = False

    def _hear(self, back: Integers, rows: Floats) -> None:
        told = self.told[back]
        pause = np.where(self.rows[back] > 0.0, self.silent_s[back], 0.0)  # a stranger has not been away
        self.rows[back] = np.minimum(self.rows[back] + rows, _SETTLING)
        share = np.minimum(rows / self.rows[back], 1.0)
        self.period_s[back] += np.where(told, 0.0, (pause / rows - self.period_s[back]) * share)
        habit = np.zeros(len(back), bool)
        habit[told] = self.habits.ended(back[told], pause[told])
        ordinary = np.where(told, np.where(habit, pause * ROOM / PAUSES, 0.0), pause)
        self.longest_s[back] = np.maximum(self.longest_s[back], ordinary)
        self.silent_s[back], self.told[back] = 0.0, False


class Stillness(Columns):
    """Of each channel: for how many rows it has repeated its value."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "run": ("<f8", (), 0.0),
        "longest": ("<f8", (), 0.0),
        "changes": ("<f8", (), 0.0),
        "lively": ("?", (), 0),
        "told": ("?", (), 0),
    }
    run: Floats
    longest: Floats
    changes: Floats
    lively: Bools  # it has been seen to move all the time
    told: Bools

    def __init__(self) -> None:
        super().__init__()
        self.habits = Habits()

    def rearrange(self, source: Integers) -> None:
        super().rearrange(source)
        self.habits.rearrange(source)

    def step(self, place: Integers, changed: Bools, gained: Integers) -> None:
        """`changed` [rows, channels `place`]: of the newest rows, the oldest first, whether the value is another than
        the one before; of rows that are not new it must be False. `gained` [channels]: new rows."""
        count = len(changed)
        moved = changed.any(axis=0)
        first = changed.argmax(axis=0) - (count - gained)
        whole = self.run[place] + np.where(moved, first, gained)
        self._end(place[moved], whole[moved])
        self.run[place] = np.where(moved, 1 + changed[::-1].argmax(axis=0), whole)
        self.changes[place] += changed.sum(axis=0)
        self.told[place[moved]] = False

    def limit(self) -> Floats:
        """[channels] rows"""
        limit: Floats = np.maximum(FEWEST_ROWS, REPETITIONS * self.longest)
        return limit

    def suspects(self) -> Integers:
        """Channels that have stood still for too long and were not told yet."""
        return np.flatnonzero(self.lively & ~self.told & (self.run > self.limit()))

    def accept(self, place: Integers) -> None:
        """So long a repetition is normal."""
        self.longest[place] = np.maximum(self.longest[place], self.run[place] * ROOM / REPETITIONS)
        self.told[place] = False

    def _end(self, place: Integers, run: Floats) -> None:
        told = self.told[place]
        habit = np.zeros(len(place), bool)
        habit[told] = self.habits.ended(place[told], run[told])
        ordinary = np.where(told, np.where(habit, run * ROOM / REPETITIONS, 0.0), run)
        self.longest[place] = np.maximum(self.longest[place], ordinary)


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


class Range(Columns):
    """Of each channel: its declared limits (infinite: none) and for how long it has been back within them."""

    FILLS: ClassVar[dict[str, tuple[str, tuple[int, ...], float]]] = {
        "low": ("<f8", (), -np.inf),
        "high": ("<f8", (), np.inf),
        "outside": ("?", (), 0),
        "worst": ("<f8", (), 0.0),
        "calm_s": ("<f8", (), 0.0),
        "told": ("?", (), 0),
    }
    low: Floats
    high: Floats
    outside: Bools  # the newest value
    worst: Floats  # the value that was told
    calm_s: Floats
    told: Bools

    def step(self, place: Integers, values: Floats, new: Bools) -> None:
        """`values` [rows, channels `place`]: the newest rows, the oldest first; `new` [rows, channels]: those not seen
        before, the last row among them."""
        low, high = self.low[place], self.high[place]
        beyond = np.where(new, np.maximum(low - values, values - high), -np.inf)
        row = beyond.argmax(axis=0)
        column = np.arange(len(place))
        left = beyond[row, column] > 0.0
        fresh = left & ~self.told[place]
        self.worst[place] = np.where(fresh, values[row, column], self.worst[place])
        self.outside[place] = beyond[-1] > 0.0
        self.told[place] |= left
        self.calm_s[place[left]] = 0.0

    def rest(self, step_s: float) -> None:
        """Time passes; what has been back for long enough is over."""
        self.calm_s = np.where(self.outside, 0.0, self.calm_s + step_s)
        self.told &= self.calm_s < OFF_DELAY_S
