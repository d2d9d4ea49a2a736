"""Keeps a flood of like notes from filling the journal: the first is written at once, the rest are counted."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

WINDOW_NS = 60_000_000_000
MAX_KEPT = 256  # kinds of notes counted at once; the oldest makes room


class Likeness(NamedTuple):
    """Two notes that agree in these are told once."""

    actor: str
    action: str
    subject: str
    outcome: str
    detail: str = ""  # JSON: what differs in it is another deed, and is not hidden behind the first


@dataclass
class _Run:
    since: int
    more: int = 0


class Folding:
    def __init__(self) -> None:
        self._runs: OrderedDict[Likeness, _Run] = OrderedDict()

    def is_first(self, note: Likeness, now: int) -> bool:
        """Whether the note is to be written now. Otherwise it is counted until `due` gives the count."""
        run = self._runs.get(note)
        if run is not None and 0 <= now - run.since < WINDOW_NS:
            run.more += 1
            return False
        self._runs[note] = _Run(now)
        self._runs.move_to_end(note)
        return True

    def due(self, now: int, all_of_them: bool = False) -> list[tuple[Likeness, int]]:
        """The notes whose minute is over, or that must make room, with how many more there were of each."""
        told = []
        for note, run in list(self._runs.items()):
            over = not 0 <= now - run.since < WINDOW_NS
            if over or all_of_them or len(self._runs) > MAX_KEPT:
                del self._runs[note]
                if run.more:
                    told.append((note, run.more))
        return told
