"""What is known of one asset besides its samples."""

import struct
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from operator import itemgetter
from typing import NamedTuple

from appliance.events.schema import Stage
from appliance.inference.detector.latch import Latch
from appliance.inference.detector.pace import Manner, Pace

NEVER = 1 << 62  # ns


class Task(StrEnum):
    """What an asset waits for."""

    LEARN = "learn"  # statistics of all founding channels from the rows so far
    JOIN = "join"  # a channel that came later has been watched for long enough
    RETURN = "return"  # a channel that had vanished is back for long enough
    ADAPT = "adapt"  # another model judges now: measure what it makes of this asset
    ACCEPT = "accept"  # an alarm has stood for so long that its state is to be learned
    PACE = "pace"  # it comes at another pace, and has been seen at it for long enough
    REFINE = "refine"  # a state that a person accepted has been seen for long enough to be learned well


class Event(NamedTuple):
    """Due when the asset has had `row` rows."""

    row: int
    task: Task
    channel: str = ""


@cache
def row_packer(width: int) -> Callable[..., None]:
    """Writes `width` values and a time in ns: one row of a block."""
    return struct.Struct(f"{width}dq").pack_into


def picker(channels: list[str]) -> Callable[[dict[str, float]], tuple[float, ...]]:
    """The values of these channels, in this order. KeyError when one is missing."""
    if len(channels) == 1:
        return lambda values: (values[channels[0]],)
    return itemgetter(*channels)


class Asset:
    """A record. The first group is read or written for each reading; its byte positions are the arena's."""

    __slots__ = (
        "alert",
        "at",
        "away",
        "backwards",
        "backwards_row",
        "channels",
        "columns",
        "cursor",
        "end",
        "events",
        "gap",
        "index",
        "latch",
        "late",
        "missing",
        "name",
        "next_due",
        "open_row",
        "pace",
        "pack",
        "pick",
        "queued",
        "ring",
        "rows",
        "seen",
        "seen_tick",
        "shape_model",
        "stage",
        "start",
        "stride",
        "whole",
    )

    def __init__(self, name: str, index: int, channels: list[str]) -> None:
        self.name = name
        self.index = index  # in Memory's arrays
        self.at = -1  # time of the last reading, ns
        self.seen: dict[str, float] = {}  # what arrived with that time
        self.gap = NEVER  # ns between two rows after which the windows start anew
        self.whole = len(channels)  # points of a reading that is a row if it has all channels; 0: look closer
        self.pick = picker(channels)
        self.pack = row_packer(len(channels))
        self.start = self.end = self.cursor = self.stride = 0  # bytes
        self.rows = 0
        self.alert = 0  # row at which somebody has to look

        self.channels = channels  # by column
        self.columns = {channel: column for column, channel in enumerate(channels)}
        self.open_row: dict[str, float] = {}  # a row that still waits for channels
        self.missing: dict[str, int] = {}  # channel -> rows it has been held for
        self.away: set[str] = set()  # channels that no row waits for any more
        self.late: set[str] = set()  # channels that have not learned, because they came after the others
        self.backwards = self.backwards_row = 0  # refused readings in a row, and the row they came after
        self.ring = 0  # rows that are kept, a power of two

        self.stage = Stage.COLLECTING
        self.events: list[Event] = []  # in the order of their rows
        self.next_due = 0  # row of the next judgement
        self.queued = False  # for the next call of `judge`
        self.latch = Latch()
        self.pace = Pace()
        self.shape_model = ""  # the model that the shape statistics belong to
        self.seen_tick = 0

    @property
    def width(self) -> int:
        return len(self.channels)

    @property
    def thinned(self) -> bool:
        """Not every reading counts."""
        return self.pace.manner is Manner.THINNED

    def rename(self, channels: list[str]) -> None:
        """Other columns; the block must follow."""
        self.channels = channels
        self.columns = {channel: column for column, channel in enumerate(channels)}
        self.pick = picker(channels)

    def plan(self, event: Event) -> None:
        self.events = sorted([*self.events, event])

    def forget(self, channel: str) -> None:
        """Nothing is planned for the channel any more."""
        self.events = [event for event in self.events if event.channel != channel]
