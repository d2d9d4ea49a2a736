"""What is measured: one function a kind of recording, `(options, bench) -> report`, reports of plain values."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import ConnectorError
from tools.evaluation import figures, recordings, seasons, signals
from tools.evaluation.judge import Bench, Verdict, write

Report = dict[str, Any]
Task = Callable[[argparse.Namespace, Bench], Report]

LEARN_ROWS = 400
FAN_ROWS = 1500  # of configuration 1 that show the normal state
HEALTHY_FAN = 1
TEP_FAULT = 160  # row at which it begins
QUANTILE = 0.99  # 1 % false alarms


def skab(options: argparse.Namespace, bench: Bench) -> Report:
    """Each file is learned and judged by itself; only rows after the learning period count. Files are dealt into two
    halves by turns: what was tuned to one of them would show."""
    options.out.mkdir(parents=True, exist_ok=True)
    counts, halves = {}, ([], [])  # type: dict[str, figures.Counts], tuple[list[figures.Counts], list[figures.Counts]]
    for place, recording in enumerate(recordings.skab(options.folder)):
        verdicts = bench.judge(recording.rows, LEARN_ROWS)
        write(options.out / recording.name, recording, verdicts)
        counts[recording.name] = _count(recording, verdicts)
        halves[place % 2].append(counts[recording.name])
    together = figures.total(counts.values())
    return {
        "files": {name: figures.plain(found) for name, found in counts.items()},
        "detector": figures.plain(together),
        **{f"half {place}": figures.plain(figures.total(half)) for place, half in enumerate(halves, 1) if half},
        "always alarm": figures.plain(figures.always(together)),
    }


def table(options: argparse.Namespace, bench: Bench) -> Report:
    """Any CSV. Without labels there is only the share of rows that were alarmed."""
    recording = recordings.read(options.file, tuple(options.drop))
    verdicts = bench.judge(recording.rows, options.train_rows)
    if options.out:
        write(options.out, recording, verdicts, options.begins)
    alarms = [verdict.alarm for verdict in verdicts[options.train_rows :]]
    return {
        "rows": len(alarms),
        "alarmed_percent": round(100.0 * sum(alarms) / max(len(alarms), 1), 2),
        "alarms": sum(figures.begins(alarms)),
        "channels": len({name for values in recording.rows for name in values}),
    }


def tep(options: argparse.Namespace, bench: Bench) -> Report:
    """Learned on d00; the score is set against what 1 % of the rows of d00_te exceed."""
    paths = {path.stem: path for path in sorted(options.folder.glob("d[0-9][0-9]*.dat"))}
    healthy = next((name for name in ("d00_te", "d00te") if name in paths), None)
    faults = {name: path for name, path in paths.items() if "te" in name and name != healthy}
    if healthy is None or "d00" not in paths or not faults:
        raise ConnectorError(f"{options.folder}: has not d00.dat, d00_te.dat and d01_te.dat to d21_te.dat")
    normal = recordings.plain(paths["d00"])
    if len(normal[0]) > len(normal):  # d00 has a line a channel
        normal = recordings.transposed(normal)
    learned = bench.learn(normal)

    def scores(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([verdict.score for verdict in bench.go_on(learned, len(normal), recordings.plain(path))])

    quiet = scores(paths[healthy])
    threshold = float(np.quantile(quiet, QUANTILE))
    found = {name: float((scores(path)[TEP_FAULT:] > threshold).mean()) for name, path in faults.items()}
    return {
        "faults": {name: {"detected": round(share, 3)} for name, share in found.items()},
        "mean_detection": round(float(np.mean(list(found.values()))), 4),
        "false_alarm_percent": round(100.0 * float((quiet > threshold).mean()), 2),
        "threshold": round(threshold, 3),
        "always alarm": {"mean_detection": 1.0, "false_alarm_percent": 100.0},
    }


def fan(options: argparse.Namespace, bench: Bench) -> Report:
    """At each speed: learned on the first rows of configuration 1, the other ones against the rest of it."""
    streams = recordings.fan(options.file)
    speeds = sorted({speed for speed, configuration in streams if configuration == HEALTHY_FAN})
    found: dict[str, dict[str, float]] = {}
    false: list[bool] = []
    for speed in speeds:
        healthy = streams[speed, HEALTHY_FAN]
        learned = bench.learn(healthy[:FAN_ROWS])
        rest = bench.go_on(learned, FAN_ROWS, healthy[FAN_ROWS:])
        false += [verdict.alarm for verdict in rest]
        found[f"speed {speed}"] = {
            f"area_{configuration}": round(
                figures.area(_scores(rest), _scores(bench.go_on(learned, FAN_ROWS, streams[speed, configuration]))), 3
            )
            for other, configuration in sorted(streams)
            if other == speed and configuration != HEALTHY_FAN
        }
    areas = [area for row in found.values() for area in row.values()]
    if not areas:
        raise ConnectorError(f"{options.file}: has no configuration beside {HEALTHY_FAN} at any speed")
    return {
        "speeds": found,
        "mean_area": round(float(np.mean(areas)), 4),
        "false_alarm_percent": round(100.0 * float(np.mean(false)), 2),
        "always alarm": {"mean_area": 0.5, "false_alarm_percent": 100.0},
    }


def steady(options: argparse.Namespace, bench: Bench) -> Report:
    """Generated machines that are well for long: every alarm is false."""
    report: Report = {}
    for name, make in signals.KINDS.items():
        alarms = signals.alarms(bench, make, options.assets, options.rows)
        report[name] = {
            "alarms_per_asset": round(sum(sum(figures.begins(row)) for row in alarms) / len(alarms), 3),
            "false_alarm_percent": round(100.0 * float(np.mean([np.mean(row) for row in alarms])), 3),
        }
    return report


def weeks(options: argparse.Namespace, bench: Bench) -> Report:
    """Generated machines with a week, at two rates of sampling."""
    return {
        f"{name}, every {minutes} min": seasons.judge(bench, running, 60.0 * minutes)
        for minutes in (1, 10)
        for name, running in seasons.KINDS.items()
    }


def _scores(verdicts: list[Verdict]) -> list[float]:
    return [verdict.score for verdict in verdicts]


def _count(recording: recordings.Recording, verdicts: list[Verdict]) -> figures.Counts:
    return figures.count((verdict.alarm for verdict in verdicts[LEARN_ROWS:]), recording.labels[LEARN_ROWS:])
