"""What a detector knows, as bytes: MAGIC, then MessagePack. Samples and statistics are packed float64, little-endian.

Of the samples only those are kept that a later judgement or lesson looks at.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from appliance.errors import InferenceError
from appliance.events.schema import Stage
from appliance.inference.detector import states
from appliance.inference.detector.asset import NEVER, Asset, Event, Task
from appliance.inference.detector.judging import Judged
from appliance.inference.detector.latch import Latch
from appliance.inference.detector.memory import BRANCHES, HEADER, Branch, Memory
from appliance.inference.detector.pace import Pace
from appliance.inference.detector.settings import MAX_WIDTH, DetectorSettings
from appliance.inference.detector.states import States

MAGIC = b"MWDETECT3\n"
MAX_BYTES = 1 << 30
MAX_EVENTS = 4 * MAX_WIDTH

_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Pause = Annotated[int, Meta(ge=0, le=NEVER)]
_Scores = Annotated[list[float], Meta(min_length=BRANCHES, max_length=BRANCHES)]  # by branch
_Names = Annotated[list[str], Meta(max_length=MAX_WIDTH)]


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """One asset."""

    name: str
    channels: Annotated[list[str], Meta(min_length=1, max_length=MAX_WIDTH)]
    at: int
    seen: dict[str, float]
    rows: _Count
    open_row: dict[str, float]
    missing: dict[str, _Count]
    away: _Names
    late: _Names
    backwards: _Count
    backwards_row: _Count
    stage: Stage
    events: Annotated[list[Event], Meta(max_length=MAX_EVENTS)]
    next_due: _Count
    latch: Latch
    shape_model: str
    unit: _Scores
    learned: _Scores
    held: _Scores
    held_cause: Annotated[list[_Count], Meta(min_length=BRANCHES, max_length=BRANCHES)]
    peak: float
    returns: _Count
    begin: _Count
    gap: _Pause
    follow: Annotated[float, Meta(ge=0.0, le=1.0)]
    header: bytes  # [HEADER, channels]
    samples: bytes  # [kept, channels]
    times: bytes  # [kept], ns
    pace: Pace
    states: States


class Snapshot(Struct, frozen=True, forbid_unknown_fields=True):
    learn_rows: int
    assets: list[Record]
    ready: list[Judged]  # judged, and not yet handed out


_decoder = msgspec.msgpack.Decoder(Snapshot)


def write(
    settings: DetectorSettings, memory: Memory, depth: int, assets: Iterable[Asset], ready: list[Judged]
) -> bytes:
    records = [_record(memory, asset, _kept(asset, depth)) for asset in assets]
    return MAGIC + msgspec.msgpack.encode(Snapshot(settings.learn_rows, records, ready))


def read(data: bytes, settings: DetectorSettings) -> Snapshot:
    """InferenceError where the bytes are not a snapshot, or one of other settings."""
    if not data.startswith(MAGIC) or len(data) > MAX_BYTES:
        raise _refused("they do not begin like a snapshot of this release")
    try:
        saved = _decoder.decode(memoryview(data)[len(MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(str(error)) from error
    if saved.learn_rows != settings.learn_rows:
        raise _refused(f"it learned from {saved.learn_rows} rows, not {settings.learn_rows}")
    for record in saved.assets:
        _check(record)
    return saved


def revive(asset: Asset, record: Record) -> None:
    """All but what lies in memory."""
    asset.at, asset.seen, asset.rows = record.at, record.seen, record.rows
    asset.open_row, asset.missing = record.open_row, record.missing
    asset.away, asset.late = set(record.away), set(record.late)
    asset.backwards, asset.backwards_row = record.backwards, record.backwards_row
    asset.stage, asset.events, asset.next_due = record.stage, sorted(record.events), record.next_due
    asset.latch, asset.pace = record.latch, record.pace
    asset.shape_model = record.shape_model
    asset.whole = 0 if asset.open_row or asset.away or asset.missing or asset.thinned else asset.width


def refill(memory: Memory, asset: Asset, record: Record) -> None:
    """What lies in memory, once the asset has its block."""
    index = asset.index
    memory.unit[:, index], memory.learned[:, index] = record.unit, record.learned
    memory.held[:, index], memory.held_cause[:, index] = record.held, record.held_cause
    memory.peak[index], memory.follow[index] = record.peak, record.follow
    memory.returns[index], memory.begin[index], asset.gap = record.returns, record.begin, record.gap
    states.revive(memory, index, record.states)
    memory.uneasy[index], memory.relieved[index] = record.latch.uneasy, record.latch.relieved
    memory.header(asset)[:] = np.frombuffer(record.header, "<f8").reshape(HEADER, asset.width)
    samples = np.frombuffer(record.samples, "<f8").reshape(-1, asset.width)
    times = np.frombuffer(record.times, "<i8")
    memory.fill(asset, samples[-asset.ring :], times[-asset.ring :].astype(np.int64))


def _kept(asset: Asset, depth: int) -> int:
    """Rows that somebody still looks at."""
    available = min(asset.rows, asset.ring)
    if any(event.task is not Task.RETURN for event in asset.events):
        return available
    waiting = max(asset.rows - asset.next_due, 0)
    return min(available, depth + waiting)


def _record(memory: Memory, asset: Asset, kept: int) -> Record:
    return Record(
        name=asset.name,
        channels=asset.channels,
        at=asset.at,
        seen=asset.seen,
        rows=asset.rows,
        open_row=asset.open_row,
        missing=asset.missing,
        away=sorted(asset.away),
        late=sorted(asset.late),
        backwards=asset.backwards,
        backwards_row=asset.backwards_row,
        stage=asset.stage,
        events=asset.events,
        next_due=asset.next_due,
        latch=asset.latch,
        shape_model=asset.shape_model,
        unit=memory.unit[:, asset.index].tolist(),
        learned=memory.learned[:, asset.index].tolist(),
        held=memory.held[:, asset.index].tolist(),
        held_cause=memory.held_cause[:, asset.index].tolist(),
        peak=float(memory.peak[asset.index]),
        begin=int(memory.begin[asset.index]),
        gap=asset.gap,
        returns=int(memory.returns[asset.index]),
        follow=float(memory.follow[asset.index]),
        header=memory.header(asset).astype("<f8").tobytes(),
        samples=memory.samples(asset, kept).astype("<f8").tobytes(),
        times=memory.times(asset, kept).astype("<i8").tobytes(),
        pace=asset.pace,
        states=states.record(memory, asset.index),
    )


def _check(record: Record) -> None:
    """What the types cannot say."""
    width, names = len(record.channels), set(record.channels)
    kept, rest = divmod(len(record.times), 8)
    sizes = len(record.header) == HEADER * width * 8 and len(record.samples) == kept * width * 8 and not rest
    known = {*record.open_row, *record.missing, *record.away, *record.late}
    known |= {event.channel for event in record.events if event.channel}
    named = len(names) == width and known <= names and max(record.held_cause) < width
    if not (sizes and named and kept <= record.rows and record.unit[Branch.LEVEL] > 0.0):
        raise _refused(f"what it says of the asset {record.name[:80]!r} contradicts itself")


def _refused(why: str) -> InferenceError:
    return InferenceError(
        f"what the detector had learned cannot be read: {why}", "Move the state file away; the assets learn anew."
    )
