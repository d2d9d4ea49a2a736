"""Judges recordings with the detector as it is shipped, and says how well."""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from appliance.errors import MillwrightError
from appliance.inference.detector.autoencoder import Reconstructor
from appliance.inference.detector.settings import DetectorSettings
from tools.evaluation import figures, recordings
from tools.evaluation.judge import Verdict, judge, shipped_model, write


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        model = None if options.level_only else shipped_model()
        report = options.act(options, model)
    except MillwrightError as error:
        print(f"tools/evaluate: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report, indent=1) if options.json else _plain(report))
    return 0


def skab(options: argparse.Namespace, model: Reconstructor | None) -> dict[str, Any]:
    """Each file is learned and judged by itself; only rows after the learning period count."""
    settings = DetectorSettings(hop=options.hop)
    options.out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for recording in recordings.skab(options.folder):
        verdicts = judge(recording, settings, model)
        write(options.out / recording.name, recording, verdicts)
        counts[recording.name] = _count(recording, verdicts, settings.learn_rows)
    together = figures.total(counts.values())
    return {
        "files": {name: figures.plain(found) for name, found in counts.items()},
        "detector": figures.plain(together),
        "always alarm": figures.plain(figures.always(together)),
    }


def table(options: argparse.Namespace, model: Reconstructor | None) -> dict[str, Any]:
    """Any CSV. Without labels there is only the share of rows that were alarmed."""
    recording = recordings.read(options.file, tuple(options.drop))
    verdicts = judge(recording, DetectorSettings(hop=options.hop, learn_rows=options.train_rows), model)
    write(options.out, recording, verdicts)
    alarms = [False, *(verdict.alarm for verdict in verdicts[options.train_rows :])]
    judged = len(alarms) - 1
    return {
        "rows": judged,
        "alarmed_percent": round(100.0 * sum(alarms) / max(judged, 1), 2),
        "alarms": sum(now and not before for before, now in itertools.pairwise(alarms)),
        "channels": len({name for values in recording.rows for name in values}),
    }


def _count(recording: recordings.Recording, verdicts: list[Verdict], learned: int) -> figures.Counts:
    return figures.count((verdict.alarm for verdict in verdicts[learned:]), recording.labels[learned:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/evaluate", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    pump = kinds.add_parser("skab", help="the files of SKAB: DIR/<group>/<n>.csv")
    pump.add_argument("folder", type=Path, metavar="DIR")
    pump.add_argument("out", type=Path, metavar="OUT_DIR", help="one CSV a file, datetime;alarm;score;threshold")
    pump.set_defaults(act=skab)
    other = kinds.add_parser("csv", help="any CSV: the first column is a time, numeric columns are channels")
    other.add_argument("file", type=Path, metavar="FILE")
    other.add_argument("--train-rows", type=_learn_rows, default=400, help="rows that show the normal state")
    other.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="a column that is no channel")
    other.add_argument("--out", type=Path, required=True, metavar="FILE")
    other.set_defaults(act=table)
    for kind in (pump, other):
        kind.add_argument("--hop", type=int, default=1, help="judge once every so many rows")
        kind.add_argument("--level-only", action="store_true", help="without the model")
        kind.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser


def _learn_rows(text: str) -> int:
    rows = int(text)
    if not 100 <= rows <= 65_536:
        raise argparse.ArgumentTypeError("100 to 65536 rows can be learned from")
    return rows


def _plain(report: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in report.items():
        if isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()):
            lines.append(_plain(value, indent + "  "))
        elif isinstance(value, dict):
            lines.append(f"{indent}{name:16} " + "  ".join(f"{key} {part}" for key, part in value.items()))
        else:
            lines.append(f"{indent}{name:16} {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
