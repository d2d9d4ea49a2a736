"""A recording in columns, read as a stream: lines in, rows of numbers out. No clock.

The first line names the columns. One column holds the time; the columns that hold numbers are points; others, and
labels (`anomaly`, `changepoint`), are left out. A row that does not fit is counted by reason and skipped.
"""

import csv
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from typing import NamedTuple, Protocol

from appliance.errors import ConnectorError, EventError
from appliance.events import codec
from appliance.events.ledger import Ledger

LABELS = {"anomaly", "changepoint"}
DELIMITERS = (";", "\t", ",")
MAX_LINE = 1 << 20  # characters
MAX_COLUMNS = 10_000
PROBE = 50  # rows that tell which columns hold numbers

_SECOND = 1_000_000_000
# A plain number as a time, by its size: the unit in ns from which size on. Below, it is a row's number.
_EPOCHS = ((10**17, 1), (10**14, 1000), (10**11, 10**6), (946_684_800, _SECOND))


class Lines(Protocol):
    """A text file, as much of it as a table needs."""

    def readline(self, size: int = -1, /) -> str: ...


class Row(NamedTuple):
    at: int | None  # UTC ns as recorded; None where the file has row numbers or no times
    values: dict[str, float]


class Columns(NamedTuple):
    time: int
    points: dict[int, str]  # column -> name of the point
    left_out: list[str]
    timed: bool  # the time column holds times, not row numbers


class Table:
    """Reads the head of `file` at once, its rows when they are asked for. `ahead` False: the rows that tell what the
    columns are count as read."""

    def __init__(self, file: Lines, source: str, time_column: str, ledger: Ledger, *, ahead: bool = True) -> None:
        self.source, self._file, self._ledger = source, file, ledger
        head = file.readline(MAX_LINE)
        if not head.strip():
            raise ConnectorError(f"{source} has no first line", "The first line of a recording names its columns.")
        self._delimiter = _delimiter(head, source)
        names = [name.strip() for name in self._split_or_nothing(head)]
        self._width = len(names)
        self._probe = list(islice(self._lines(), PROBE))
        self.columns = _columns(names, [self._split_or_nothing(line) for line in self._probe], time_column, source)
        self._unread = self._probe if ahead else []

    def rows(self) -> Iterator[Row | None]:
        """Row by row; None stands for one that does not fit, counted in the ledger, or that is blank."""
        return self._parsed(chain(self._probe, self._lines()))

    def more(self) -> Iterator[Row | None]:
        """As `rows`, those that were not read yet: of a file that grows, again and again."""
        return self._parsed(chain(iter(self._taken, None), self._lines()))

    def _taken(self) -> str | None:
        return self._unread.pop(0) if self._unread else None

    def _parsed(self, lines: Iterable[str]) -> Iterator[Row | None]:
        for line in lines:
            row = None
            if line.strip():
                self._ledger.received += 1
                try:
                    row = self._row(line)
                except EventError as error:
                    self._ledger.drop(error.reason, f"{self.source}: {error.message}")
            yield row

    def _row(self, line: str) -> Row:
        if len(line) >= MAX_LINE:
            raise EventError("too-long", f"a line of {MAX_LINE} characters or more")
        cells = self._split(line)
        if len(cells) != self._width:
            raise EventError("columns", f"{len(cells)} columns where the head has {self._width}: {line[:40]!r}")
        columns = self.columns
        at = parse_time(cells[columns.time]) if columns.timed else None
        if columns.timed and at is None:
            raise EventError("time", f"{cells[columns.time][:40]!r} is not a time")
        values = {}
        for index, name in columns.points.items():
            value = _number(cells[index], name)
            if value is not None:
                values[name] = value
        if not values:
            raise EventError("empty", f"no value in {line[:40]!r}")
        return Row(at, values)

    def _lines(self) -> Iterator[str]:
        """Lines of at most MAX_LINE characters: of a longer one comes only the beginning."""
        while line := self._file.readline(MAX_LINE):
            if len(line) == MAX_LINE and not line.endswith("\n"):
                _skip_line(self._file)
            yield line

    def _split(self, line: str) -> list[str]:
        # Line by line: a stray quotation mark costs its own line, not all that follow.
        if '"' not in line:
            return line.rstrip("\n").split(self._delimiter)
        try:
            return next(csv.reader([line], delimiter=self._delimiter), [])
        except csv.Error as error:
            raise EventError("malformed", f"{error}: {line[:40]!r}") from error

    def _split_or_nothing(self, line: str) -> list[str]:
        try:
            return self._split(line)
        except EventError:
            return []


def parse_time(text: str) -> int | None:
    """UTC ns of an ISO 8601 time (without a zone: UTC) or of an epoch in s, ms, us or ns. None for anything else."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        return _iso(text)
    for least, unit in _EPOCHS:
        if number >= least and math.isfinite(number):
            return int(text) * unit if text.isdigit() else round(number * unit)
    return None


def _iso(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * _SECOND + since.microseconds * 1000


def _number(text: str, name: str) -> float | None:
    """None where the value is missing, which recordings write as nothing or as NaN."""
    text = text.strip()
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise EventError("not-a-number", f"'{name}' is {text[:40]!r}") from None
    if math.isinf(value):
        raise EventError("not-finite", f"'{name}' is {value}")
    return None if math.isnan(value) else value


def _delimiter(head: str, source: str) -> str:
    best = max(DELIMITERS, key=head.count)
    if best not in head:
        raise ConnectorError(f"{source} has a single column", "Columns are separated by , ; or tab.")
    return best


def _columns(names: list[str], probe: list[list[str]], time_column: str, source: str) -> Columns:
    """Which column holds the time and which are points, from their names and the first rows."""
    if not names or len(names) > MAX_COLUMNS:
        raise ConnectorError(f"the first line of {source} names {len(names)} columns", f"At most {MAX_COLUMNS}.")
    if all(_parses(name) for name in names[1:]):
        raise ConnectorError(f"the first line of {source} holds numbers", "Put a line with names of columns above it.")
    if not any(len(row) == len(names) for row in probe):
        raise ConnectorError(f"{source} has no rows below its first line", "Name a recording with rows.")
    time = _time_index(names, time_column, source)
    points: dict[int, str] = {}
    left_out = []
    for index, name in enumerate(names):
        if index == time:
            continue
        if name.lower() not in LABELS and _is_numeric(index, probe) and can_name(name) and name not in points.values():
            points[index] = name
        else:
            left_out.append(name)
    if not points:
        raise ConnectorError(f"{source} has no column of numbers", "Numbers are written like 61.2, with a point.")
    if len(points) > codec.MAX_POINTS:
        raise ConnectorError(f"{source} has {len(points)} columns of numbers", f"At most {codec.MAX_POINTS}.")
    return Columns(time, points, left_out, _is_timed(time, probe))


def _time_index(names: list[str], time_column: str, source: str) -> int:
    if not time_column:
        return 0
    if time_column not in names:
        raise ConnectorError(f"{source} has no column '{time_column}'", f"time_column is one of: {', '.join(names)}.")
    return names.index(time_column)


def _is_timed(time: int, probe: list[list[str]]) -> bool:
    return _most(parse_time(row[time]) is not None for row in probe if len(row) > time)


def _is_numeric(index: int, probe: list[list[str]]) -> bool:
    return _most(_parses(row[index]) for row in probe if len(row) > index and row[index].strip())


def _most(truths: Iterable[bool]) -> bool:
    """More than half: one broken cell among the first rows does not cost the column."""
    found = list(truths)
    return 2 * sum(found) > len(found)


def _parses(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def can_name(name: str) -> bool:
    try:
        codec.check_points([name])
    except EventError:
        return False
    return True


def _skip_line(file: Lines) -> None:
    while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
        pass
