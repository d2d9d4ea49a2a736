"""Figures of a detector against labels, always beside an alarm that never stops."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Counts(NamedTuple):
    """Rows: alarmed and labelled, alarmed only, labelled only, neither."""

    hit: int = 0
    false: int = 0
    missed: int = 0
    quiet: int = 0

    @property
    def f1(self) -> float:
        return self.hit / (self.hit + (self.false + self.missed) / 2) if self.hit else 0.0

    @property
    def false_alarm_rate(self) -> float:
        """Percent of the healthy rows."""
        return 100.0 * self.false / max(self.false + self.quiet, 1)

    @property
    def missed_rate(self) -> float:
        """Percent of the labelled rows."""
        return 100.0 * self.missed / max(self.missed + self.hit, 1)


def count(alarms: Iterable[bool], labels: Iterable[bool]) -> Counts:
    pairs = list(zip(alarms, labels, strict=True))
    return Counts(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))


def total(counts: Iterable[Counts]) -> Counts:
    """Rows of all files together, no file weighs more than its rows."""
    return Counts(*map(sum, zip(*counts, strict=True)))


def always(counts: Counts) -> Counts:
    """The floor: an alarm on every row."""
    return Counts(counts.hit + counts.missed, counts.false + counts.quiet, 0, 0)


def area(healthy: Sequence[float], faulty: Sequence[float]) -> float:
    """Under the receiver's curve: how often a faulty row scores above a healthy one, ties by half."""
    values = np.concatenate([healthy, faulty])
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[place]
    above = rank[len(healthy) :].sum() - len(faulty) * (len(faulty) + 1) / 2.0
    return float(above / (len(healthy) * len(faulty)))


def begins(alarms: Iterable[bool]) -> list[bool]:
    """Where an alarm begins."""
    return [now and not before for before, now in itertools.pairwise([False, *alarms])]


def plain(counts: Counts) -> dict[str, Any]:
    return {
        "f1": round(counts.f1, 4),
        "false_alarm_percent": round(counts.false_alarm_rate, 2),
        "missed_percent": round(counts.missed_rate, 2),
    }
