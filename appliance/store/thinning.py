"""What gives way when the outbox is full: readings first, every second one of each asset before any is dropped whole,
then scores; never an alarm, never a state. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from appliance.store.parcels import Lane, Load

WhenFull = Literal["thin", "drop-oldest", "drop-newest"]

THINNED, DROPPED = "thinned", "budget"  # reasons in the books
MAX_LEVEL = 5  # halvings: one of 32 is left
TOGETHER = 4096  # entries that are thinned at once, so that each asset has several among them
_YIELDING = (Lane.READING, Lane.SCORE)


class Facts(NamedTuple):
    """Of a frame that may give way."""

    id: int
    lane: Lane
    level: int  # how often it was halved
    entries: int


class Halve(NamedTuple):
    frames: list[int]  # made into one


class Drop(NamedTuple):
    frames: list[int]


def choose(frames: Sequence[Facts], policy: WhenFull) -> Halve | Drop | None:
    """The next step towards the budget; None where nothing may give way. `frames` in order of arrival."""
    for lane in _YIELDING:
        own = [frame for frame in frames if frame.lane is lane]
        if policy == "thin" and (group := _thinnable(own)):
            return Halve([frame.id for frame in group])
    for lane in _YIELDING:
        own = [frame for frame in frames if frame.lane is lane]
        if own:
            return Drop([own[-1 if policy == "drop-newest" else 0].id])
    return None


def _thinnable(frames: Sequence[Facts]) -> list[Facts]:
    """The oldest neighbours of the lowest level: one resolution for all before the next step for any."""
    level = min((frame.level for frame in frames if frame.entries > 1), default=MAX_LEVEL)
    group: list[Facts] = []
    for frame in frames if level < MAX_LEVEL else ():
        if frame.level == level:
            group.append(frame)
            if sum(one.entries for one in group) >= TOGETHER:
                break
        elif group:
            break
    return group


def halve(load: Load, seqs: Sequence[int]) -> Load:
    """Every second entry of each topic, the first of them among those that stay."""
    seen: dict[str, bool] = {}
    kept: list[int] = []
    for place, topic in enumerate(load.topics):
        stays = not seen.get(topic, False)
        seen[topic] = stays
        if stays:
            kept.append(place)
    return Load([load.topics[at] for at in kept], [load.payloads[at] for at in kept], [seqs[at] for at in kept])
