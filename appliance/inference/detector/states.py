"""A machine that comes and goes between two states: on and off, week and weekend.

home     where it was while it learned
away     where it stayed, look after look, during alarms that ended by themselves often enough, or that were accepted
between  neither, and beyond neither: on its way. That takes a while, the longest of which is remembered; what stays
         there for longer is as strange as if no other state were known

So a machine that stands still at the weekend is well, and one of which a single channel goes on running is not. Looks
are held against the state that explains them better, and are left out as long as a window holds two states.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from appliance.inference.detector.arena import Floats, Integers
from appliance.inference.detector.latch import THRESHOLD
from appliance.inference.detector.memory import Memory

HOME, AWAY, BETWEEN = 0, 1, 2
_Rows = Annotated[int, Meta(ge=0, lt=1 << 53)]


class States(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one asset, as it is written down."""

    two: bool
    place_of: Annotated[int, Meta(ge=HOME, le=BETWEEN)]
    settled: _Rows
    moved: _Rows
    transit: _Rows


ROOM = 1.5  # times the longest way is a way


def on_its_way(memory: Memory, index: Integers, rows: Integers) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which assets may be between their states after `rows`."""
    return rows - memory.settled[index] <= memory.transit[index]


def arrive(memory: Memory, index: Integers, rows: Integers, look: int, most: int) -> None:
    """At a look at assets with two states: where they are, and how long the way took."""
    inside = memory.apart[index] <= THRESHOLD
    place = np.where(inside, memory.nearer[index], BETWEEN)
    before = memory.place_of[index]
    memory.moved[index] = np.where((place != before) | ~inside, rows, memory.moved[index])
    way = np.where(inside & (before == BETWEEN), rows - memory.settled[index], 0)
    longest = np.maximum(memory.transit[index], look)
    memory.transit[index] = np.maximum(
        longest, np.minimum((ROOM * np.minimum(way, ROOM * longest)).astype(np.int64), most)
    )
    memory.settled[index] = np.where(inside, rows, memory.settled[index])
    memory.place_of[index] = place


def begin(memory: Memory, index: Integers, rows: Integers, look: int) -> None:
    """Another state has become known."""
    new = ~memory.two[index]
    memory.two[index] = True
    memory.transit[index] = np.where(new, 2 * look, memory.transit[index])
    memory.settled[index] = np.where(new, rows, memory.settled[index])
    memory.moved[index] = np.where(new, rows, memory.moved[index])
    memory.place_of[index] = np.where(new, BETWEEN, memory.place_of[index])


def nearest(features: Floats, centre: Floats, low: Floats, high: Floats) -> Floats:
    """Deviations of features from the state that explains each better; `low` above `high`: there is no other one."""
    home, away = features - centre, features - np.minimum(np.maximum(features, low), high)
    return np.where((low <= high) & (np.abs(away) < np.abs(home)), away, home)


def record(memory: Memory, index: int) -> States:
    rows = (memory.place_of, memory.settled, memory.moved, memory.transit)
    return States(bool(memory.two[index]), *(int(values[index]) for values in rows))


def revive(memory: Memory, index: int, saved: States) -> None:
    memory.two[index] = saved.two
    memory.place_of[index], memory.settled[index] = saved.place_of, saved.settled
    memory.moved[index], memory.transit[index] = saved.moved, saved.transit
