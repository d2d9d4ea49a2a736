"""A Parquet file, followed: its rows once it is whole, and again what is added to it. No clock.

Writers end such a file with its table of contents: until that is there, the file is being written. Row groups that are
added later (the table of contents is written anew) are read as they come; a file with other content is read anew.

pyarrow (`tools/setup parquet`) is imported when the first such file is read: a box without them does not carry it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.connectors._table import LABELS, MAX_COLUMNS, Row, can_name, parse_time
from appliance.errors import ConnectorError, EventError
from appliance.events import codec
from appliance.events.ledger import Ledger

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SUFFIXES = (".parquet", ".pq")
MAX_FOOTER = 64 << 20  # bytes of texts and of lists in a table of contents
MAX_GROUP = 1 << 30  # bytes of a row group, unpacked
TIMES = ("time", "timestamp", "at")  # names of a column of times that is of another type
_MAGIC = b"PAR1"
_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}


class Facts(NamedTuple):
    """By which a file is known to be as it was."""

    device: int
    inode: int
    size: int
    changed: int


class Columns(NamedTuple):
    time: str  # empty: there is none
    points: list[str]


class Followed:
    """One file. The same questions as to a file of text."""

    def __init__(self, path: Path, time_column: str, ledger: Ledger, *, at_end: bool) -> None:
        self._path, self._time_column, self._ledger = path, time_column, ledger
        self._facts: Facts | None = None  # of the file as it was last looked at
        self._file: ParquetFile | None = None
        self._groups: list[str] = []  # those that were read, as the table of contents describes them
        self._rows: Iterator[list[Row]] = iter(())
        self._at_end = at_end

    def rows(self) -> list[Row]:
        """What was added, a part of it. ConnectorError where the file cannot be read, or pyarrow is not there."""
        try:
            found = next(self._rows, None)
            if found is None and self._is_whole():
                self._open()
                if self._at_end:
                    self._rows = iter(())
                found = next(self._rows, None)
            self._at_end = False
        except FileNotFoundError:
            return []  # it is gone since it was listed
        except OSError as error:
            raise ConnectorError(f"{self._path} cannot be read: {error.strerror or error}", "Check it.") from error
        return found or []

    def close(self) -> None:
        self._rows = iter(())
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_whole(self) -> bool:
        """It is another file than it was, and its end is there."""
        status = self._path.stat()
        facts = Facts(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if facts == self._facts:
            return False
        with self._path.open("rb") as raw:
            head = raw.read(len(_MAGIC))
            raw.seek(max(0, facts.size - len(_MAGIC)))
            is_whole = facts.size > 2 * len(_MAGIC) and head == raw.read(len(_MAGIC)) == _MAGIC
        if is_whole or (head and not _MAGIC.startswith(head)):
            self._facts = facts
        if not is_whole and self._facts == facts:
            self._refuse(f"{self._path} does not begin as a Parquet file does")
        return is_whole

    def _open(self) -> None:
        self.close()
        library = _library()
        try:
            self._file = file = library.ParquetFile(
                self._path,
                pre_buffer=False,
                page_checksum_verification=True,
                thrift_string_size_limit=MAX_FOOTER,
                thrift_container_size_limit=MAX_FOOTER,
            )
            columns = _columns(file.schema_arrow, self._time_column)
        except (ValueError, LookupError, NotImplementedError, OSError) as error:  # pyarrow's own are among these
            self.close()
            self._refuse(f"{self._path}: {error}")
            return
        known = _described(file)
        begin = len(self._groups) if known[: len(self._groups)] == self._groups else 0
        self._groups = known
        self._rows = self._read(file, columns, range(begin, len(known)))

    def _read(self, file: "ParquetFile", columns: Columns, groups: range) -> Iterator[list[Row]]:
        wanted = [name for name in (columns.time, *columns.points) if name]
        for group in groups:
            if file.metadata.row_group(group).total_byte_size > MAX_GROUP:
                self._refuse(f"{self._path}: a row group of more than {MAX_GROUP >> 20} MiB", "too-large")
                continue
            try:
                for batch in file.iter_batches(2000, row_groups=[group], columns=wanted, use_threads=False):
                    yield list(self._parsed(batch, columns))
            except (ValueError, LookupError, NotImplementedError, OSError) as error:
                self._refuse(f"{self._path}: {error}", "malformed")

    def _parsed(self, batch: "pa.RecordBatch", columns: Columns) -> Iterator[Row]:
        times = _times(batch.column(columns.time)) if columns.time else [None] * batch.num_rows
        lists = [_numbers(batch.column(name)) for name in columns.points]
        for at, *cells in zip(times, *lists, strict=True):
            self._ledger.received += 1
            try:
                yield _row(at, dict(zip(columns.points, cells, strict=True)))
            except EventError as error:
                self._ledger.drop(error.reason, f"{self._path}: {error.message}")

    def _refuse(self, problem: str, reason: str = "no-table") -> None:
        self._ledger.received += 1
        self._ledger.drop(reason, problem[:500])


def _described(file: "ParquetFile") -> list[str]:
    """Its row groups: where they lie, how long they are, what they hold at least and at most."""
    return [repr(file.metadata.row_group(number).to_dict()) for number in range(file.metadata.num_row_groups)]


def _row(at: int | None, cells: dict[str, float | None]) -> Row:
    values = {name: value for name, value in cells.items() if value is not None and not math.isnan(value)}
    if not values:
        raise EventError("empty", "a row without values")
    for name, value in values.items():
        if math.isinf(value):
            raise EventError("not-finite", f"'{name}' is {value}")
    return Row(at, values)


def _columns(schema: "pa.Schema", time_column: str) -> Columns:
    """Which column holds the time and which are points, from their names and types. ValueError."""
    names = list(schema.names)
    if not names or len(names) > MAX_COLUMNS or len(set(names)) < len(names):
        raise ValueError(f"{len(names)} columns, where {MAX_COLUMNS} of different names are allowed")
    if time_column and time_column not in names:
        raise ValueError(f"there is no column '{time_column}'")
    times = [name for name in names if _is_time(schema.field(name).type)]
    times += [name for name in names if name.lower() in TIMES]
    time = time_column or (times[0] if times else "")
    points = [
        name
        for name in names
        if name != time and name.lower() not in LABELS and _is_number(schema.field(name).type) and can_name(name)
    ]
    if not 0 < len(points) <= codec.MAX_POINTS:
        raise ValueError(f"{len(points)} columns of numbers, where 1 to {codec.MAX_POINTS} are allowed")
    return Columns(time, points)


def _is_time(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_number(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _numbers(column: "pa.Array[Any]") -> list[float | None]:
    import pyarrow as pa

    numbers: list[float | None] = column.cast(pa.float64(), safe=False).to_pylist()
    return numbers


def _times(column: "pa.Array[Any]") -> list[int | None]:
    """UTC ns; None where there is none. Texts and plain numbers are read as in a file of text."""
    import pyarrow as pa

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        unit = _UNITS[column.type.unit]
        return [None if ticks is None else ticks * unit for ticks in column.cast(pa.int64()).to_pylist()]
    return [None if value is None else parse_time(str(value)) for value in column.to_pylist()]


def _library() -> Any:
    """pyarrow.parquet. ConnectorError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConnectorError("Parquet files need pyarrow, which is not installed", "tools/setup parquet") from None
    return parquet
