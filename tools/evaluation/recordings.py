"""Recordings: CSV files whose first column is a time and whose numeric columns are channels; and two other forms."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ConnectorError

LABELS = ("anomaly", "changepoint")  # of SKAB: what is to be found, never shown to the detector
HEALTHY = "anomaly-free"
SEPARATORS = ";,\t|"

Values = dict[str, float]


@dataclass(frozen=True)
class Recording:
    """`clock` is the name of the column of `times`, which are as they stand in the file; `rows` of finite values by
    channel; `labels` empty or one a row."""

    name: str
    clock: str
    times: list[str]
    rows: list[Values]
    labels: list[bool]


def read(path: Path, hidden: tuple[str, ...] = ()) -> Recording:
    """Channels are the columns, but for the first and the hidden ones, in which some row has a number; a cell without
    one is a point that is missing. ConnectorError where the file is not such a table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            separator = max(SEPARATORS, key=head.count)
            file.seek(0)
            table = list(csv.reader(file, delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConnectorError(f"{path}: cannot be read as CSV: {error}") from error
    if len(table) < 2 or len(table[0]) < 2:
        raise ConnectorError(
            f"{path}: has no rows of numbers", "The first line names the columns, the first is a time."
        )
    names, body = table[0], [line for line in table[1:] if line]
    columns = [column for column, name in enumerate(names) if column and name not in hidden]
    rows = [
        {names[column]: value for column in columns if (value := _number(line, column)) is not None} for line in body
    ]
    label = names.index(LABELS[0]) if LABELS[0] in hidden and LABELS[0] in names else None
    labels = [] if label is None else [bool(_number(line, label)) for line in body]
    return Recording(path.name, names[0], [line[0] for line in body], rows, labels)


def skab(folder: Path) -> list[Recording]:
    """The labelled files `<group>/<n>.csv`, each named `<group>_<n>.csv`. ConnectorError where there are none."""
    paths = sorted(path for path in folder.glob("*/*.csv") if HEALTHY not in str(path.relative_to(folder)))
    if not paths:
        raise ConnectorError(
            f"{folder}: has no files <group>/<n>.csv", "Name the folder that holds valve1, valve2, other."
        )
    found = []
    for path in paths:
        recording = read(path, LABELS)
        name = f"{path.parent.name}_{path.name}"
        found.append(Recording(name, recording.clock, recording.times, recording.rows, recording.labels))
    return found


def plain(path: Path) -> list[Values]:
    """Rows of numbers apart by blanks, without a head. ConnectorError where the file is not such a table."""
    try:
        lines = [line.split() for line in path.read_text("ascii").splitlines() if line.strip()]
        rows = [{f"x{column}": float(cell) for column, cell in enumerate(line)} for line in lines]
    except (OSError, ValueError) as error:
        raise ConnectorError(f"{path}: cannot be read as rows of numbers: {error}") from error
    if not rows or len({len(row) for row in rows}) != 1:
        raise ConnectorError(f"{path}: has no rows of the same length", "One line a row, numbers apart by blanks.")
    return rows


def transposed(rows: list[Values]) -> list[Values]:
    columns = zip(*(row.values() for row in rows), strict=True)
    return [{f"x{column}": value for column, value in enumerate(line)} for line in columns]


def fan(path: Path) -> dict[tuple[int, int], list[Values]]:
    """(speed, configuration) -> rows of x, y, z. ConnectorError where a column is missing."""
    found: dict[tuple[int, int], list[Values]] = {}
    for line in _dicts(path, ("wconfid", "pctid", "x", "y", "z")):
        key = int(float(line["pctid"])), int(float(line["wconfid"]))
        found.setdefault(key, []).append({axis: float(line[axis]) for axis in "xyz"})
    return found


def _dicts(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if not set(columns) <= set(lines.fieldnames or ()):
                raise ConnectorError(f"{path}: has not the columns {', '.join(columns)}", "Name the fan's CSV file.")
            yield from lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConnectorError(f"{path}: cannot be read as CSV: {error}") from error


def _number(line: list[str], column: int) -> float | None:
    try:
        value = float(line[column])
    except (ValueError, IndexError):
        return None
    return value if math.isfinite(value) else None
