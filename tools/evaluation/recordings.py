"""Recordings: CSV files whose first column is a time and whose numeric columns are channels."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ConnectorError

LABELS = ("anomaly", "changepoint")  # of SKAB: what is to be found, never shown to the detector
HEALTHY = "anomaly-free"
SEPARATORS = ";,\t|"


@dataclass(frozen=True)
class Recording:
    """`times` as they stand in the file; `rows` of finite values by channel; `labels` empty or one a row."""

    name: str
    times: list[str]
    rows: list[dict[str, float]]
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
    return Recording(path.name, [line[0] for line in body], rows, labels)


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
        found.append(Recording(name, recording.times, recording.rows, recording.labels))
    return found


def _number(line: list[str], column: int) -> float | None:
    try:
        value = float(line[column])
    except (ValueError, IndexError):
        return None
    return value if math.isfinite(value) else None
