"""Judges recordings with the detector as it is shipped, and says how well."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from appliance.errors import MillwrightError
from tools.evaluation import page, tasks
from tools.evaluation.judge import Bench, model_of


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        model = None if options.without_model else model_of(options.model)
        report = options.act(options, Bench(model, options.hop))
    except MillwrightError as error:
        print(f"tools/evaluate: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(report, indent=1) if options.json else _plain(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/evaluate", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    pump = _kind(kinds, "skab", tasks.skab, "the files of SKAB: DIR/<group>/<n>.csv")
    pump.add_argument("folder", type=Path, metavar="DIR")
    pump.add_argument("out", type=Path, metavar="OUT_DIR", help="one CSV a file, datetime;alarm;score;threshold")
    other = _kind(kinds, "csv", tasks.table, "any CSV: the first column is a time, numeric columns are channels")
    other.add_argument("file", type=Path, metavar="FILE")
    other.add_argument("--train-rows", type=_learn_rows, default=400, help="rows that show the normal state")
    other.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="a column that is no channel")
    other.add_argument("--out", type=Path, metavar="FILE", help="a CSV: <time>;alarm;score;threshold;cause;branch")
    other.add_argument("--begins", action="store_true", help="alarm is 1 on the row at which one begins, as NAB counts")
    plant = _kind(kinds, "tep", tasks.tep, "Tennessee Eastman: DIR/d00.dat, d00_te.dat, d01_te.dat, ...")
    plant.add_argument("folder", type=Path, metavar="DIR")
    fan = _kind(kinds, "fan", tasks.fan, "a fan's accelerometer: wconfid, pctid, x, y, z")
    fan.add_argument("file", type=Path, metavar="FILE")
    steady = _kind(kinds, "steady", tasks.steady, "generated machines that are well")
    steady.add_argument("--assets", type=int, default=20)
    steady.add_argument("--rows", type=int, default=20_000, help="after the 400 to learn from")
    _kind(kinds, "weeks", tasks.weeks, "generated machines with a week")
    everything = _kind(kinds, "all", page.everything, "all of them, and the page of results")
    everything.add_argument("--shared", type=Path, required=True, metavar="DIR", help="the folder that holds data")
    everything.add_argument("--float-model", type=Path, metavar="DIR", help="the bundle before it was quantised")
    everything.add_argument("--page", type=Path, metavar="FILE", help="write the page of results there")
    return parser


def _kind(kinds: Any, name: str, act: tasks.Task, description: str) -> argparse.ArgumentParser:
    kind: argparse.ArgumentParser = kinds.add_parser(name, help=description)
    kind.set_defaults(act=act)
    kind.add_argument("--hop", type=int, default=1, help="judge once every so many rows")
    kind.add_argument("--model", type=Path, metavar="DIR", help="another bundle than the shipped one")
    kind.add_argument("--without-model", action="store_true", help="level and spread alone")
    kind.add_argument("--json", action="store_true", help="the figures as JSON")
    return kind


def _learn_rows(text: str) -> int:
    rows = int(text)
    if not 100 <= rows <= 65_536:
        raise argparse.ArgumentTypeError("100 to 65536 rows can be learned from")
    return rows


def _plain(report: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in report.items():
        if isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()):
            lines += [f"{indent}{name}", _plain(value, indent + "  ")]
        elif isinstance(value, dict):
            lines.append(f"{indent}{name:18} " + "  ".join(f"{key} {part}" for key, part in value.items()))
        else:
            lines.append(f"{indent}{name:18} {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
