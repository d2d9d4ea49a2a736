"""What benchmarks make of their measurements: medians, percentiles, searches, and goals that are met or not."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

median = statistics.median


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of all values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("a percentile of nothing")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def highest(ladder: Sequence[int], holds: Callable[[int], bool]) -> int:
    """The highest step of a rising ladder that holds, by bisection; 0 where none does."""
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        if holds(ladder[middle]):
            low = middle + 1
        else:
            high = middle
    return ladder[low - 1] if low else 0


@dataclass(frozen=True)
class Goal:
    """A figure and its bound; `at_most` tells which side of the bound is good. `measured` None: not measured."""

    name: str
    bound: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def line(self) -> str:
        shown = "not measured" if self.measured is None else f"{self.measured:.3g}"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.name:<52} {'<=' if self.at_most else '>='} {self.bound:<6g} {shown:>12}  {verdict}".rstrip()

    def plain(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bound": self.bound,
            "at_most": self.at_most,
            "measured": self.measured,
            "met": self.met,
        }
