"""The page of results: all recordings that are there, judged with and without eight bits, beside the floor."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.evaluation import figures, nab, recordings, tasks
from tools.evaluation.judge import Bench, model_of

STEEL_WEEK = 672  # rows of 15 min
STEEL_LEARN = 2 * STEEL_WEEK
STEEL_WEEKS = (0, 4, 12, 20, 28, 36, 44)  # of the year: where the two weeks to learn from begin
HEAD = """# How well recordings are judged

Made by `tools/evaluate all --shared DIR --float-model DIR --page FILE`: every recording through the detector as the
service runs it, with its default settings and the shipped model on OpenVINO's CPU. The recordings are not part of this
repository. F1 alone says little: an alarm that never stops is the floor.

"""
NOTES = """
## What is measured

- SKAB: 1 Hz pump rig, each file learned on its first 400 rows, judged on the rest, no labels, no point-adjust, the rows
  of all files together. The halves are the files dealt by turns. `anomaly-free` is one long recording without a fault
  whose temperatures rise all the time.
- Tennessee Eastman: learned on d00, threshold at 1 % false alarms on d00_te, mean of the fault files present.
- Fan: learned on 1500 rows of configuration 1 at each speed; area under the curve of configurations 2 and 3 against the
  rest of configuration 1, mean over speeds. An alarm that never stops has 0.5.
- NAB machine_temperature: standard profile, of the rows at which an alarm begins; 100 is perfect, 0 never to alarm.
  Rows to learn from: 15 %, at most 750, as NAB allows.
- Steel works: learned on two weeks, judged on the next, for seven begins through the year; and learned on 400 rows,
  judged on the rest of the year.
- Machines with a week: generated ones of 4 channels, learned on 400 rows from a Tuesday on. At the fifth weekend
  one channel is for 12 h where it is while the machine runs, nearly, or where it never was.
- Steady machines: 20 generated ones of 4 channels, 20,000 rows each after 400.
"""


def everything(options: argparse.Namespace, bench: Bench) -> tasks.Report:
    """One report a model: eight bits, as it was trained, none."""
    benches = {"INT8": bench}
    if options.float_model:
        benches["FP32"] = Bench(model_of(_bundle(options.float_model)), bench.hop)
    benches["no model"] = Bench(None, bench.hop)
    report = {name: dict(_all(options, each)) for name, each in benches.items()}
    if options.page:
        options.page.write_text(HEAD + "\n".join(_table(report)) + "\n" + NOTES, "utf-8")
    return report


def _bundle(folder: Path) -> Path:
    """The folder itself, or the only one in it."""
    return folder if (folder / "card.toml").is_file() else next(path for path in folder.iterdir() if path.is_dir())


def _all(options: argparse.Namespace, bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    data = options.shared / "data"
    with tempfile.TemporaryDirectory() as out:
        pump = tasks.skab(argparse.Namespace(folder=data / "skab", out=Path(out)), bench)
    for part, name in (("detector", "SKAB"), ("half 1", "SKAB, one half"), ("half 2", "SKAB, other half")):
        yield name, pump[part]
    yield "SKAB, always alarm", pump["always alarm"]
    healthy = recordings.read(data / "skab" / "anomaly-free" / "anomaly-free.csv")
    yield "SKAB, anomaly-free", _share(bench, healthy.rows, tasks.LEARN_ROWS)
    plant = tasks.tep(argparse.Namespace(folder=data / "tep"), bench)
    yield "Tennessee Eastman", {key: plant[key] for key in ("mean_detection", "false_alarm_percent")}
    fan = tasks.fan(argparse.Namespace(file=data / "fan_vibration" / "accelerometer.csv"), bench)
    yield "fan", {key: fan[key] for key in ("mean_area", "false_alarm_percent")}
    yield "NAB machine_temperature", nab.score(data / "nab", bench)
    steel = recordings.read(data / "steel_energy" / "Steel_industry_data.csv").rows
    weeks = [steel[STEEL_WEEK * week : STEEL_WEEK * week + STEEL_LEARN + STEEL_WEEK] for week in STEEL_WEEKS]
    found = [_share(bench, rows, STEEL_LEARN)["false_alarm_percent"] for rows in weeks]
    yield "steel works, week 3", {"false_alarm_percent": max(found)}
    yield "steel works, 400 rows", _share(bench, steel, tasks.LEARN_ROWS)
    for kind, quiet in tasks.steady(argparse.Namespace(assets=20, rows=20_000), bench).items():
        yield f"steady: {kind}", quiet
    for kind, found in tasks.weeks(options, bench).items():
        yield kind, found


def _share(bench: Bench, rows: list[recordings.Values], learn_rows: int) -> dict[str, Any]:
    alarms = [verdict.alarm for verdict in bench.judge(rows, learn_rows)[learn_rows:]]
    percent = round(100.0 * sum(alarms) / len(alarms), 2)
    return {"false_alarm_percent": percent, "alarms": sum(figures.begins(alarms))}


def _table(report: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    names = list(report)
    yield f"| recording | figure | {' | '.join(names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for recording, row in report[names[0]].items():
        for figure in row:
            cells = " | ".join(str(report[name][recording][figure]) for name in names)
            yield f"| {recording} | {figure.replace('_percent', ' %').replace('_', ' ')} | {cells} |"
