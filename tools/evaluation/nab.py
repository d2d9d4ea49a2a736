"""NAB's score of one series, standard profile: the first alarm in a window earns, the earlier the more, others cost."""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tools.evaluation import figures, recordings
from tools.evaluation.judge import Bench

SERIES = "realKnownCause/machine_temperature_system_failure.csv"
FALSE = 0.11  # a false alarm costs so much of a window
SHARE, MOST = 0.15, 750  # rows that are not scored, and may be learned from


def score(folder: Path, bench: Bench) -> dict[str, Any]:
    recording = recordings.read(folder / SERIES)
    windows = json.loads((folder / "windows.json").read_text("utf-8"))[SERIES]
    learned = min(int(SHARE * len(recording.rows)), MOST)
    verdicts = bench.judge(recording.rows, learned)
    begins = [row for row, begun in enumerate(figures.begins(verdict.alarm for verdict in verdicts)) if begun]
    times = [datetime.fromisoformat(time) for time in recording.times]
    spans = [_span(times, *(datetime.fromisoformat(end) for end in window)) for window in windows]
    return {
        "nab_standard": round(_score([row for row in begins if row >= learned], spans), 1),
        "windows_found": sum(any(first <= row <= last for row in begins) for first, last in spans),
        "false_alarms": sum(not any(first <= row <= last for first, last in spans) for row in begins),
    }


def _span(times: Sequence[datetime], begin: datetime, end: datetime) -> tuple[int, int]:
    inside = [row for row, time in enumerate(times) if begin <= time <= end]
    return inside[0], inside[-1]


def _score(begins: Sequence[int], spans: Sequence[tuple[int, int]]) -> float:
    total = 0.0
    for first, last in spans:
        inside = [row for row in begins if first <= row <= last]
        total += _worth(-(last - inside[0] + 1) / (last - first + 1)) / _worth(-1.0) if inside else -1.0
    for row in begins:
        if not any(first <= row <= last for first, last in spans):
            before = [(first, last) for first, last in spans if last < row]
            late = (row - before[-1][1]) / (before[-1][1] - before[-1][0]) if before else math.inf
            total += FALSE * (_worth(late) if late <= 3.0 else -1.0)
    return 100.0 * (total + len(spans)) / (2.0 * len(spans))


def _worth(place: float) -> float:
    """Of an alarm at a window's begin (-1), its end (0), or after it."""
    return 2.0 / (1.0 + math.exp(5.0 * place)) - 1.0
