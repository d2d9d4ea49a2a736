"""Judges readings: any number of assets, channels, names and units.

    push    a reading goes into its asset's ring of samples; nothing is computed
    judge   every asset that has had `hop` more rows gets a score, all of them at once

    rows    60 collecting    240 learning    400 warning    alarming
            limits only      scores          warnings       alarms, by the statistics of the first 400 rows

Pure: no clock, no files. The same readings give the same judgements, however they are spread over calls of `judge`, and
whether or not the detector was written down and read back in between.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from appliance.events.rows import Row
from appliance.events.schema import Block, Reading, Stage
from appliance.inference.detector import pace, snapshots, waveform
from appliance.inference.detector.admission import Admission
from appliance.inference.detector.arena import WORD
from appliance.inference.detector.asset import Asset, Task
from appliance.inference.detector.autoencoder import Reconstructor, Shapes
from appliance.inference.detector.intake import Intake
from appliance.inference.detector.judging import Judge, Judged
from appliance.inference.detector.latch import Latch
from appliance.inference.detector.learning import Learning
from appliance.inference.detector.level import WINDOW
from appliance.inference.detector.lots import Lot, block_rows
from appliance.inference.detector.memory import Memory
from appliance.inference.detector.pace import Turn
from appliance.inference.detector.quality import Limit
from appliance.inference.detector.rounds import Rounds
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.detector.succession import Succession

__all__ = ["Detector", "DetectorSettings", "Judged", "Known", "Reconstructor"]


_NOTHING: dict[str, float] = {}


class Known(NamedTuple):
    """An asset, for a person."""

    asset: str
    stage: Stage
    rows: int  # seen
    channels: list[str]


class Detector:
    """`autoencoder` None: the level branch judges alone."""

    def __init__(self, settings: DetectorSettings, autoencoder: Reconstructor | None = None) -> None:
        self._settings = settings
        self._shapes = Shapes(autoencoder)
        self._memory = memory = Memory(settings.max_assets, settings.max_channels)
        self._arena = memory.arena
        self._judge = Judge(memory, self._shapes, settings, self._stands)
        self._learning = Learning(settings, memory, self._shapes, self._judge)
        self._admission = Admission(settings, memory)
        self._assets = self._admission.assets
        self.succession = Succession(settings, memory, self._shapes, self._judge, self._learning, self._assets)
        self._intake = Intake(
            settings, memory, self._learning, self._admission, self._settle, self._reached, self._resume
        )
        self._due: list[Asset] = []
        self._ready: list[Judged] = []

    def push(self, asset: str, reading: Reading) -> None:
        """Take a reading with finite values. EventError when it is refused: duplicate, time-backwards,
        too-many-assets, too-many-channels, point-name."""
        known = self._assets.get(asset) or self._admit(asset, reading)
        at, values = reading.at, reading.values
        if at <= known.at:
            self._intake.check_time(known, reading)
        if len(values) != known.whole:
            self._intake.take(known, reading)
            return
        try:
            row = known.pick(values)
        except KeyError:
            self._intake.take(known, reading)
            return
        known.seen = values
        self._append(known, at, row)

    def push_block(self, asset: str, block: Block) -> None:
        """Take a waveform: its energies are channels of the asset. EventError as of `push`, and short-block."""
        self.push(asset, waveform.features(block))

    def points(self, asset: str) -> list[str] | None:
        """What `push_row` takes of the asset, in this order; another list once that changes. None: it takes nothing."""
        known = self._assets.get(asset)
        return known.channels if known is not None and known.whole else None

    def push_row(self, asset: str, at: int, points: list[str], row: Row) -> bool:
        """`push` of finite values of `points`, in their order, for half the price. False: `push` has to look."""
        known = self._assets.get(asset)
        if known is None or known.channels is not points or not known.whole or at <= known.at:
            return False
        known.seen = _NOTHING
        # What `_append` does: here for the price of the call, of which there is one for each message.
        if at - known.at > known.gap:
            self._resume(known, at - known.at)
        cursor = known.cursor
        known.pack(self._arena.raw, cursor, *row, at)
        known.at = at
        cursor += known.stride
        known.cursor = known.start if cursor == known.end else cursor
        known.rows = rows = known.rows + 1
        if rows >= known.alert:
            self._reached(known)
        return True

    def push_lots(self, lots: Sequence[Lot], at: int) -> Iterator[int]:
        """`push_row` of one row after another, all of one width, at times a nanosecond apart from `at` on, for a third
        of the price. Of each lot, once it is taken: how many of its rows; where one is missing `push` has to look."""
        table, begin = block_rows(lots, at), 0
        stride = (len(lots[0].points) + 1) * WORD
        for asset, points, rows, _ in lots:
            end = begin + rows * stride
            yield self._push_lot(asset, at, points, table[begin:end])
            at, begin = at + rows, end

    def _push_lot(self, asset: str, at: int, points: list[str], table: memoryview) -> int:
        known = self._assets.get(asset)
        if known is None:
            return 0
        place, start = 0, at
        while place < len(table) and known.channels is points and known.whole and at > known.at:
            known.seen = _NOTHING
            if at - known.at > known.gap:
                self._resume(known, at - known.at)
            cursor, stride = known.cursor, known.stride
            # As far as nobody has to look, and not over the ring's end.
            step = min(len(table) - place, max(known.alert - known.rows, 1) * stride, known.end - cursor)
            self._arena.raw[cursor : cursor + step] = table[place : place + step]
            place, cursor, count = place + step, cursor + step, step // stride
            at += count
            known.at = at - 1
            known.cursor = known.start if cursor == known.end else cursor
            known.rows += count
            if known.rows >= known.alert:
                self._reached(known)
        return at - start

    def _append(self, known: Asset, at: int, row: Row) -> None:
        if at - known.at > known.gap:
            self._resume(known, at - known.at)
        known.pack(self._arena.raw, known.cursor, *row, at)
        known.at = at
        cursor = known.cursor + known.stride
        known.cursor = known.start if cursor == known.end else cursor
        known.rows = rows = known.rows + 1
        if rows >= known.alert:
            self._reached(known)

    def judge(self) -> list[Judged]:
        """What became due since the last call, each asset's in the order of its rows."""
        due, self._due = self._due, []
        judged, self._ready = self._ready, []
        self._judge.judge(due, judged)
        for asset in due:
            asset.queued = False
            self._watch(asset)
        self.succession.tend(due)
        self._admission.tick += len(judged) * self._settings.hop
        return judged

    def accept(self, asset: str) -> None:
        """A person says that the asset's present state is normal: it raises no alarm from now on."""
        known = self._assets.get(asset)
        if known is not None:
            self._settle(known)
            self._learning.accept(known)
            self._reached(known)

    def remark(self, asset: str) -> str:
        """What was concluded from the asset's alarm without anybody's word; told once."""
        return self._learning.remarks.pop(asset, "")

    def remarked(self) -> list[str]:
        """Assets of which there is something to remark."""
        return list(self._learning.remarks)

    def forget(self, asset: str) -> None:
        """The asset learns anew with its next reading."""
        known = self._assets.get(asset)
        if known is not None:
            self._due = [due for due in self._due if due is not known]
            self._ready = [judged for judged in self._ready if judged.asset != asset]
            self._admission.forget(known)
            self._learning.remarks.pop(asset, None)

    def rounds(self, limits: Iterable[Limit] = ()) -> Rounds:
        """What goes over all assets now and then."""
        return Rounds(self._settings, self._memory, self._assets, limits)

    def assets(self) -> list[Known]:
        return [Known(known.name, known.stage, known.rows, known.channels) for known in self._assets.values()]

    def describe(self) -> dict[str, Any]:
        """Plain values for a status display; bounded, whatever the number of assets."""
        stages = Counter(known.stage.value for known in list(self._assets.values()))
        return {
            "assets": len(self._assets),
            "channels": self._admission.channels,
            "stages": {stage.value: stages[stage.value] for stage in Stage},
            "model": self._shapes.identity,
            "model_trouble": self._shapes.trouble,
            "model_failures": self._shapes.failures,
            **pace.describe((known.name, known.pace) for known in list(self._assets.values())),
        }

    def latches(self) -> dict[str, Any]:
        """Plain values: of each asset with an alarm, or the memory of one, what an alarm changes."""
        busy = [known for known in self._assets.values() if known.latch.busy]
        return {known.name: msgspec.to_builtins(known.latch) for known in busy}

    def set_latches(self, data: dict[str, Any]) -> None:
        """What `latches` gave, later than what was restored. msgspec.ValidationError where it is something else."""
        latches = msgspec.convert(data, dict[str, Latch])
        for known in self._assets.values():
            latch = latches.get(known.name)
            if latch is None and not known.latch.busy:
                continue
            self._memory.calm(known)
            if latch is not None:
                known.latch = latch
                self._memory.uneasy[known.index] = latch.uneasy

    def snapshot(self) -> bytes:
        """Everything that a restart must not forget."""
        self.succession.finish()
        return snapshots.write(self._settings, self._memory, self._judge.depth, self._assets.values(), self._ready)

    def restore(self, data: bytes) -> None:
        """Take over what `snapshot` wrote; the detector must be new. InferenceError when the bytes are not a snapshot,
        or one that was learned under other settings: nothing is taken over then."""
        saved = snapshots.read(data, self._settings)
        self._ready = saved.ready
        for record in saved.assets:
            if self._admission.has_room(len(record.channels)):
                self._revive(record)

    def _revive(self, record: snapshots.Record) -> None:
        asset = Asset(record.name, self._memory.index(), record.channels)
        snapshots.revive(asset, record)
        self._memory.place(asset, self._learning.ring(asset))
        snapshots.refill(self._memory, asset, record)
        self._admission.adopt(asset)
        if asset.shape_model != self._shapes.identity:
            self._learning.adapt(asset)
        waiting = asset.rows - asset.ring + self._judge.depth < asset.next_due <= asset.rows + self._settings.hop
        if asset.next_due % self._settings.hop or not waiting:
            asset.next_due = self._next_due(max(asset.rows, self._settings.collect_rows))
        self._reached(asset)

    def _admit(self, name: str, reading: Reading) -> Asset:
        asset = self._admission.admit(name, list(reading.values), self._learning.first_ring)
        self._learning.begin(asset)
        asset.next_due = self._next_due(self._settings.collect_rows)
        return asset

    def _next_due(self, rows: int) -> int:
        """The first judgement after so many rows: multiples of the hop, whenever the asset began."""
        return (rows // self._settings.hop + 1) * self._settings.hop

    def _reached(self, asset: Asset) -> None:
        """The asset has had as many rows as it was to be watched for."""
        if asset.rows >= asset.pace.row:
            self._keep_pace(asset)
        if asset.events and asset.rows >= asset.events[0].row:
            self._settle(asset)
            self._learning.run(asset)
            if asset.stage is not Stage.COLLECTING:
                self._admission.establish(asset)
        if asset.stage is Stage.COLLECTING:
            self._admission.touch(asset)
        if asset.rows >= asset.next_due and not asset.queued:
            asset.queued = True
            self._due.append(asset)
        if asset.rows >= asset.next_due + asset.ring - self._judge.depth:
            self._settle(asset)
        self._watch(asset)

    def _watch(self, asset: Asset) -> None:
        """Set the row at which the asset must be looked at again."""
        if asset.stage is Stage.COLLECTING:
            asset.alert = asset.rows + 1
            return
        full = asset.next_due + asset.ring - self._judge.depth
        due = full if asset.queued else asset.next_due
        asset.alert = min(due, asset.pace.row, asset.events[0].row if asset.events else due)

    def _keep_pace(self, asset: Asset) -> None:
        """Some rows have passed: do they come as they did while the asset learned?"""
        turn = asset.pace.check(asset.rows, asset.at)
        if turn is Turn.NOTHING:
            return
        self._settle(asset)
        if turn is Turn.LEAVE:
            asset.gap = max(asset.gap, asset.pace.gap)
        elif turn is Turn.THIN:
            asset.whole = 0
            self._begin_anew(asset)
        elif turn is Turn.LEARN and not asset.latch.standing:
            self._learning.expect_pace(asset)
        elif turn is Turn.ANEW and not asset.latch.standing:
            self._memory.begin[asset.index] = asset.rows
            self._memory.held[:, asset.index] = 0.0

    def _resume(self, asset: Asset, pause: int) -> None:
        """After a gap in time of `pause` ns."""
        self._settle(asset)
        asset.gap = asset.pace.pause(asset.rows, pause) or asset.gap
        self._begin_anew(asset)

    def _begin_anew(self, asset: Asset) -> None:
        """No window holds rows from before and after."""
        self._memory.begin[asset.index] = asset.rows
        self._memory.held[:, asset.index] = 0.0
        if asset.stage is not Stage.COLLECTING:
            asset.next_due = self._next_due(asset.rows + WINDOW - 1)
        self._watch(asset)

    def _stands(self, asset: Asset) -> None:
        """An alarm has stood for long."""
        if not any(event.task is Task.ACCEPT for event in asset.events):
            self._learning.expect_acceptance(asset)

    def _settle(self, asset: Asset) -> None:
        """Judge what the asset is due now: something about it changes, or its ring is full."""
        self._judge.judge([asset], self._ready)
