"""Readings that are not simply the next whole row of a known asset.

time      older than the last: refused, until so many in a row say that the clock was set back
channels  new ones widen the asset; those that stay away are held, then left out; they may come back
rows      a device may send its points in several messages: a row is whole when every channel that is expected
          has come, or when one comes for the second time; the others keep their last values
order     of the points in a message: the columns follow it, so that the next reading is simple again
"""

from collections.abc import Callable, Iterable

from appliance.errors import EventError
from appliance.events.schema import Reading
from appliance.inference.detector.admission import Admission
from appliance.inference.detector.asset import Asset, Event, Task
from appliance.inference.detector.learning import STALE_ROWS, Learning
from appliance.inference.detector.memory import Memory, Row
from appliance.inference.detector.settings import DetectorSettings

MAX_BACKWARDS = 30  # readings in a row that are refused for their time
HOLD_ROWS = 64  # for which a channel that stays away keeps its last value
RETURN_ROWS = 64  # after which a channel that came back counts again

Settle = Callable[[Asset], None]


class Intake:
    """`settle` judges what an asset is due, before something about it changes; `reached` is told of each alert,
    `resume` of each gap in time and its length, ns."""

    def __init__(
        self,
        settings: DetectorSettings,
        memory: Memory,
        learning: Learning,
        admission: Admission,
        settle: Settle,
        reached: Settle,
        resume: Callable[[Asset, int], None],
    ) -> None:
        self._collect_rows = settings.collect_rows
        self._memory, self._learning, self._admission = memory, learning, admission
        self._settle, self._reached, self._resume = settle, reached, resume

    def check_time(self, asset: Asset, reading: Reading) -> None:
        """Of a reading that is not newer than the last. EventError: duplicate, time-backwards."""
        if reading.at == asset.at:
            seen = asset.seen
            if all(name in seen and seen[name] == value for name, value in reading.values.items()):
                raise EventError("duplicate", f"{asset.name}: the same reading was taken before")
            return
        if asset.backwards_row != asset.rows:
            asset.backwards, asset.backwards_row = 0, asset.rows
        if asset.backwards < MAX_BACKWARDS:
            asset.backwards += 1
            late = (asset.at - reading.at) / 1e9
            raise EventError("time-backwards", f"{asset.name}: a reading from {late:.3f} s before its last")
        asset.backwards = 0
        self._resume(asset, 0)

    def take(self, asset: Asset, reading: Reading) -> None:
        """Any reading whose time is right. EventError: point-name, too-many-channels."""
        values = reading.values
        unknown = [name for name in values if name not in asset.columns]
        if unknown:
            self._admission.widen(asset, unknown)
            self._extend(asset, unknown, values)
        for name in asset.away & values.keys():
            self._welcome(asset, name)
        if not asset.open_row.keys().isdisjoint(values):
            self._close(asset)
        if reading.at - asset.at > asset.gap:
            self._resume(asset, reading.at - asset.at)
        asset.seen = {**asset.seen, **values} if reading.at == asset.at else values
        asset.at, asset.backwards = reading.at, 0
        if asset.thinned and not asset.open_row and not asset.pace.admits(reading.at):
            return
        asset.open_row.update(values)
        if len(asset.open_row) >= asset.width - len(asset.away):
            self._close(asset)
        simple = not (asset.open_row or asset.away or asset.missing or asset.thinned)
        asset.whole = asset.width if simple else 0

    def _close(self, asset: Asset) -> None:
        """Write the open row."""
        row = self._memory.samples(asset, 1)[0].tolist() if asset.rows else [0.0] * asset.width
        for name, value in asset.open_row.items():
            row[asset.columns[name]] = value
        absent = asset.columns.keys() - asset.open_row.keys() - asset.away if len(asset.open_row) < asset.width else ()
        asset.open_row = {}
        self.write(asset, row)
        self._count_absent(asset, absent)

    def write(self, asset: Asset, row: Iterable[float]) -> None:
        """A whole row, by column."""
        asset.pack(self._memory.arena.raw, asset.cursor, *row, asset.at)
        cursor = asset.cursor + asset.stride
        asset.cursor = asset.start if cursor == asset.end else cursor
        asset.rows += 1
        if asset.rows >= asset.alert:
            self._reached(asset)

    def _count_absent(self, asset: Asset, absent: Iterable[str]) -> None:
        before = asset.missing
        asset.missing = {name: before.get(name, 0) + 1 for name in absent}
        for name, rows in asset.missing.items():
            if rows == STALE_ROWS:
                self._stale(asset, name)
        for name in before.keys() - asset.missing.keys():
            if before[name] >= STALE_ROWS:
                asset.plan(Event(asset.rows + RETURN_ROWS, Task.RETURN, name))
                self._reached(asset)
        for name in [name for name, rows in asset.missing.items() if rows >= HOLD_ROWS]:
            self._settle(asset)
            del asset.missing[name]
            asset.away.add(name)
            asset.forget(name)
            self._memory.header(asset)[Row.ACTIVE, asset.columns[name]] = 0.0

    def _stale(self, asset: Asset, name: str) -> None:
        """Its last value is repeated: that it is quiet means nothing now."""
        if name not in asset.late:
            asset.forget(name)
        header, column = self._memory.header(asset), asset.columns[name]
        if header[Row.FRESH, column]:
            self._settle(asset)
            header[Row.FRESH, column] = 0.0

    def _welcome(self, asset: Asset, name: str) -> None:
        """A channel is back; once the old values have left the windows it counts again."""
        asset.away.discard(name)
        if name in asset.late:
            self._settle(asset)
            self._learning.expect(asset, name)
        else:
            asset.plan(Event(asset.rows + RETURN_ROWS, Task.RETURN, name))
        self._reached(asset)

    def _extend(self, asset: Asset, names: list[str], values: dict[str, float]) -> None:
        """New columns. As long as the asset has hardly begun they learn with the others, as if they had stood still."""
        self._settle(asset)
        before, kept = asset.width, min(asset.rows, asset.ring)
        asset.rename(asset.channels + names)
        self._memory.reshape(asset, asset.ring)
        samples = self._memory.samples(asset, kept)
        samples[:, before:] = [values[name] for name in names]
        self._memory.fill(asset, samples, self._memory.times(asset, kept))
        if asset.rows >= self._collect_rows:
            for name in names:
                self._learning.expect(asset, name)
        self._reached(asset)
