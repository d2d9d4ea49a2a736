"""The cheapest way to a bundle: a delta, a chain of deltas, or the whole. Pure.

Cheapest is what takes the fewest bytes over the line, what has arrived already not counted; of ways that take the same,
the one with fewer steps. How much memory a step takes is a bound, not a price.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

MAX_STEPS = 8  # deltas in a row: each must be applied, and each is a place to be interrupted
MAX_LEGS = 20_000


@dataclass(frozen=True)
class Leg:
    """One file that makes `bundle`: of `base`, or of nothing. Bundles are content hashes, `file` the target's hash."""

    bundle: str
    file: str
    bytes: int
    unpacked_bytes: int
    base: str | None = None
    memory_bytes: int = 0


@dataclass(frozen=True)
class Route:
    """`legs` in the order in which they are applied; none where the bundle is at hand."""

    legs: tuple[Leg, ...]
    fetch_bytes: int  # what is still to come over the line
    disk_bytes: int  # what is free at the start, at least: all files, and all bundles on the way

    @property
    def memory_bytes(self) -> int:
        """What applying its deltas takes at most; none where there are none."""
        return max((leg.memory_bytes for leg in self.legs), default=0)

    @property
    def kind(self) -> str:
        if not self.legs:
            return "at hand"
        if self.legs[0].base is None:
            return "whole" if len(self.legs) == 1 else "whole and deltas"
        return "delta" if len(self.legs) == 1 else "chain of deltas"


def cheapest(
    wanted: str,
    legs: Iterable[Leg],
    at_hand: Iterable[str],
    arrived: Callable[[Leg], int] = lambda leg: 0,
    memory_bytes: int | None = None,
) -> Route | None:
    """None where no way leads there. `arrived(leg)` are bytes of its file that this box has already."""
    usable = [leg for leg in legs if memory_bytes is None or leg.memory_bytes <= memory_bytes][:MAX_LEGS]
    costs = {leg: max(leg.bytes - arrived(leg), 0) for leg in usable}
    reached: dict[str, tuple[int, tuple[Leg, ...]]] = dict.fromkeys(at_hand, (0, ()))
    for leg in usable:
        if leg.base is None:
            _improve(reached, leg.bundle, costs[leg], (leg,))
    for _ in range(MAX_STEPS):
        if not _lengthen(reached, usable, costs):
            break
    if wanted not in reached:
        return None
    cost, way = reached[wanted]
    return Route(way, cost, cost + sum(leg.unpacked_bytes for leg in way))


def _lengthen(reached: dict[str, tuple[int, tuple[Leg, ...]]], legs: list[Leg], costs: Mapping[Leg, int]) -> bool:
    """Every way by one more delta; whether that found a better one. They grow together, so none gets too long."""
    found = False
    for base, (cost, way) in list(reached.items()):
        for leg in legs:
            if leg.base == base:
                found |= _improve(reached, leg.bundle, cost + costs[leg], (*way, leg))
    return found


def _improve(reached: dict[str, tuple[int, tuple[Leg, ...]]], bundle: str, cost: int, way: tuple[Leg, ...]) -> bool:
    before = reached.get(bundle)
    if before is not None and (before[0], len(before[1])) <= (cost, len(way)):
        return False
    reached[bundle] = (cost, way)
    return True
