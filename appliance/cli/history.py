"""`millwright history`: what was recorded of an asset.

On a terminal a table of the newest readings; with --csv or --json all that was asked for, one reading a line, so that
years of it pass through in little memory. Times are UTC in CSV and JSON, local in the table. It reads the database
itself, whether Millwright runs or not.
"""

import argparse
import csv
import itertools
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from appliance.cli import instance
from appliance.errors import MillwrightError

if TYPE_CHECKING:
    from appliance.store.reader import Reader, Recorded

NEWEST = 40  # readings of a table, where no number is asked for

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SECOND = 1_000_000_000  # ns
_LATEST = 9_000_000_000  # s; what the database can hold


class UsageError(MillwrightError):
    exit_code = 2


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "history",
        help="show what was recorded of an asset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("asset", metavar="ASSET", nargs="?", help="line1/pump; left out: list the recorded assets")
    parser.add_argument("--since", metavar="WHEN", help="2h, 30m, 7d (ago), or 2026-11-21T08:00 (local, or with Z)")
    parser.add_argument("--until", metavar="WHEN", help="the same forms")
    parser.add_argument("--points", metavar="A,B", help="only these points")
    parser.add_argument("--limit", metavar="N", type=int, help=f"the newest N readings (table: {NEWEST})")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--json", action="store_true", help="print JSON lines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    now = time.time_ns()
    since = moment("--since", args.since, now) if args.since else 0
    until = moment("--until", args.until, now) if args.until else _LATEST * _SECOND
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: at least one reading must be asked for")
    config, _ = instance.configuration(args)
    from appliance.store.history import FILE
    from appliance.store.reader import reading

    with reading(config.paths.state / FILE) as reader:
        if args.asset is None:
            return _list(reader, args.json)
        _check_asset(reader, args.asset)
        points = _points(reader, args, since, until)
        limit = args.limit or (None if args.csv or args.json else NEWEST)
        show = _print_csv if args.csv else _print_json if args.json else _print_table
        show(points, _readings(reader, args.asset, set(points), (since, until), limit))
        if reader.rotten:
            print(f"millwright: {reader.rotten} damaged parts of the record were left out", file=sys.stderr)
    return 0


def moment(option: str, text: str, now: int) -> int:
    """A time in UTC ns: so long ago, or a date with or without a time of day."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if ago:
        return max(0, now - round(float(ago[1]) * _UNITS[ago[2]] * _SECOND))
    try:
        return min(max(0, round(datetime.fromisoformat(text).timestamp() * 1000)), _LATEST * 1000) * 1_000_000
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option} '{text}' is not a time", "Write 2h, 30m, 7d or 2026-11-21T08:00.") from error


def _list(reader: "Reader", as_json: bool) -> int:
    for asset in reader.assets():
        print(json.dumps({"asset": asset}) if as_json else asset)
    return 0


def _check_asset(reader: "Reader", asset: str) -> None:
    known = reader.assets()
    if asset not in known:
        raise MillwrightError(f"nothing is recorded of '{asset}'", _nearest(asset, known, "asset"))


def _points(reader: "Reader", args: argparse.Namespace, since: int, until: int) -> list[str]:
    """Names of the columns."""
    known = reader.points(args.asset, since, until)
    if not args.points:
        return known
    asked = [name.strip() for name in args.points.split(",")]
    every = reader.points(args.asset)
    for name in asked:
        if name not in every:
            raise MillwrightError(f"'{args.asset}' has no point '{name}'", _nearest(name, every, "point"))
    return asked


def _nearest(name: str, known: Sequence[str], thing: str) -> str:
    import difflib

    if not known:
        return f"No {thing} is recorded yet."
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    shown, more = known[:10], len(known) - 10
    return (f"Did you mean {' or '.join(near)}? " if near else "") + (
        f"There {'is' if len(known) == 1 else 'are'}: {', '.join(shown)}" + (f" and {more} more." if more > 0 else ".")
    )


def _readings(
    reader: "Reader", asset: str, points: set[str], span: tuple[int, int], limit: int | None
) -> "Iterator[Recorded]":
    """Those that have one of the points at least, in order of time; of more than `limit` the newest."""
    every = reader.readings(asset, *span, newest_first=limit is not None)
    found = (one for one in every if not points.isdisjoint(one.values))
    return found if limit is None else iter(list(itertools.islice(found, limit))[::-1])


def _print_csv(points: list[str], found: "Iterator[Recorded]") -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["time", *points])
    for at, values in found:
        writer.writerow([utc(at), *(repr(values[name]) if name in values else "" for name in points)])


def _print_json(points: list[str], found: "Iterator[Recorded]") -> None:
    for at, values in found:
        some = {name: values[name] for name in points if name in values}
        print(json.dumps({"at": at, "time": utc(at), "values": some}, ensure_ascii=False))


def _print_table(points: list[str], found: "Iterator[Recorded]") -> None:
    from appliance.services.words import printable

    rows = [(local(at), *(_cell(values.get(name)) for name in points)) for at, values in found]
    if not rows:
        print("Nothing was recorded in that time.")
        return
    table = [("TIME", *(printable(name) for name in points)), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(points) + 1)]
    shown = _fitting(widths)
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row[:shown], widths[:shown], strict=True)).rstrip())
    if shown < len(widths):
        rest = ", ".join(table[0][shown:])
        print(f"({len(widths) - shown} more points do not fit: {rest}; choose with --points)")


def _fitting(widths: list[int]) -> int:
    """How many columns a terminal shows, two at least; elsewhere all."""
    if not sys.stdout.isatty():
        return len(widths)
    room = shutil.get_terminal_size().columns
    ends = itertools.accumulate(width + 2 for width in widths)
    return max(2, sum(end - 2 <= room for end in ends))


def _cell(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.7g}"


def utc(at: int) -> str:
    """RFC 3339 to the nanosecond."""
    seconds, rest = divmod(at, _SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def local(at: int) -> str:
    """Date and time of day, as the clock on the wall shows them, to the millisecond."""
    seconds, rest = divmod(at, _SECOND)
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d}"
