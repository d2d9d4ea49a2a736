"""What gives way when the outbox is full: readings first, every second one of each asset before any is dropped whole,
then scores; never an alarm, never a state. Pure."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from appliance.store.parcels import Lane, Load

WhenFull = Literal["thin", "drop-oldest", "drop-newest"]

THINNED, DROPPED = "thinned", "budget"  # reasons in the books
MAX_LEVEL = 5  # halvings: one of 32 is left
TOGETHER = 4096  # entries that are thinned at once, so that each asset has several among them
YIELDING = (Lane.READING, Lane.SCORE)


class Facts(NamedTuple):
    """Of a frame that may give way."""

    id: int
    lane: Lane
    level: int  # how often it was halved
    entries: int
    size: int  # bytes


class Halve(NamedTuple):
    frames: list[int]  # made into one


class Drop(NamedTuple):
    frames: list[int]


def choose(frames: Sequence[Facts], policy: WhenFull, excess: int) -> Halve | Drop | None:
    """The next step towards the budget, which is `excess` bytes away; None where nothing may give way. `frames` of each
    lane in order of arrival; for `drop-newest` the last one first."""
    for lane in YIELDING:
        own = [frame for frame in frames if frame.lane is lane]
        if policy == "thin" and (group := _thinnable(own)):
            return Halve([frame.id for frame in group])
    for lane in YIELDING:
        own = [frame for frame in frames if frame.lane is lane]
        if own:
            return Drop([frame.id for frame in _enough(own, excess)])
    return None


def _thinnable(frames: Sequence[Facts]) -> list[Facts]:
    """The oldest neighbours of the lowest level: one resolution for all before the next step for any."""
    level = min((frame.level for frame in frames), default=MAX_LEVEL)
    group: list[Facts] = []
    for frame in frames if level < MAX_LEVEL else ():
        if frame.level == level:
            group.append(frame)
            if sum(one.entries for one in group) >= TOGETHER:
                break
        elif group:
            break
    return group


def _enough(frames: Sequence[Facts], excess: int) -> list[Facts]:
    """The first of them that hold so many bytes; one at least."""
    sizes = accumulate(frame.size for frame in frames)
    return [frame for frame, size in zip(frames, sizes, strict=True) if size - frame.size < max(excess, 1)]


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
