"""CSV and Parquet files that something else is writing: rows become readings as they are added.

    [[connectors.files]]
    folder = "/srv/press/log"
    pattern = "*.csv"                # newest files of such names; one that is new is read from its beginning
    asset = "hall1/press"

    [[connectors.files]]
    folder = "/srv/lab"
    pattern = "balance-*.txt"
    asset = "lab"
    per_file = true                  # lab/balance-1, lab/balance-2: an asset a file
    time_column = "measured"
    stamp = "recorded"
    start = "beginning"

    [[connectors.files]]
    folder = "/srv/historian"
    pattern = "*.parquet"            # needs pyarrow: tools/setup parquet
    asset = "hall2/oven"

The first line names the columns; times, numbers, labels and broken rows are treated as in [connectors.replay]. A line
counts when its end is there. A file that is replaced or cut off (rotated) is read anew; one that is no table is counted
and left alone. Where this box stops, it goes on with what is added after its next start (`start = "end"`), or reads all
again (`start = "beginning"`).

A Parquet file is read once it is whole, row group by row group, and what is added to it later. Its time is the first
column of that type, or `time_column`; numbers are points. `_parquet.py` tells more.
"""

import asyncio
import io
import os
import stat
from collections.abc import AsyncIterator
from heapq import nlargest
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

from msgspec import Meta, Struct

from appliance.connectors import _parquet
from appliance.connectors._names import checked, level
from appliance.connectors._pace import REAL, Metronome, Time
from appliance.connectors._table import Row, Table
from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError
from appliance.events.ledger import Ledger
from appliance.events.schema import Reading

MAX_FILES = 200
MAX_ROWS = 2000  # of a file in a batch


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """CSV and Parquet files that are being written."""

    folder: Annotated[str, Meta(min_length=1, description="Where they are.")]
    asset: Annotated[str, Meta(min_length=1, description="The asset their rows belong to.")]
    pattern: Annotated[str, Meta(min_length=1, description="Which files of the folder.")] = "*.csv"
    per_file: Annotated[bool, Meta(description="An asset for each file, below `asset`.")] = False
    stamp: Annotated[
        Literal["now", "recorded"], Meta(description="The time of a reading: of its arrival, or as recorded.")
    ] = "now"
    time_column: Annotated[
        str, Meta(description="The column with the times; empty: the first, in Parquet the first of times.")
    ] = ""
    start: Annotated[
        Literal["end", "beginning"], Meta(description="Of files that are there at the start: what is read of them.")
    ] = "end"
    interval_s: Annotated[float, Meta(ge=0.01, le=3600, description="Between two looks at the folder.")] = 1.0


def create(settings: Settings, time: Time = REAL) -> "Files":
    return Files(settings, time)


class Files:
    is_patient = True

    def __init__(self, settings: Settings, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._time = settings, time
        checked(settings.asset)
        self._followed: dict[Path, Followed | _parquet.Followed] = {}
        self._stamped = 0

    async def __aenter__(self) -> Self:
        is_first = self._settings.start == "end"
        for path in await self._found():
            self._follow(path, at_end=is_first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for followed in self._followed.values():
            followed.close()
        self._followed.clear()

    async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        metronome = Metronome(self._settings.interval_s, self._time)
        while True:
            await metronome.tick()
            for path in await self._found():
                if path not in self._followed:
                    self._follow(path, at_end=False)
                while rows := self._followed[path].rows():
                    arrivals = [Arrival(self._asset(path), self._reading(row)) for row in rows]
                    self.ledger.processed += len(arrivals)
                    yield arrivals

    def _follow(self, path: Path, *, at_end: bool) -> None:
        kind = _parquet.Followed if path.suffix.lower() in _parquet.SUFFIXES else Followed
        self._followed[path] = kind(path, self._settings.time_column, self.ledger, at_end=at_end)

    async def _found(self) -> list[Path]:
        """The newest files, oldest first; those that are gone are no longer followed."""
        newest = await asyncio.to_thread(self._listed)  # a folder may be large, and far away
        for gone in self._followed.keys() - set(newest):
            self._followed.pop(gone).close()
        return newest

    def _listed(self) -> list[Path]:
        folder = Path(self._settings.folder).expanduser()
        try:
            if not folder.is_dir():
                raise ConnectorError(f"there is no folder {folder}", "Check 'folder' of [connectors.files].")
            found = ((_changed(path), path) for path in folder.glob(self._settings.pattern))
            newest = nlargest(MAX_FILES, ((changed, path) for changed, path in found if changed is not None))
            return [path for _, path in sorted(newest)]
        except OSError as error:
            raise ConnectorError(f"{folder} cannot be read: {error.strerror}", "Check its rights.") from error

    def _asset(self, path: Path) -> str:
        return f"{self._settings.asset}/{level(path.stem, 'file')}" if self._settings.per_file else self._settings.asset

    def _reading(self, row: Row) -> Reading:
        if self._settings.stamp == "recorded" and row.at is not None:
            return Reading(row.at, row.values)
        self._stamped = max(self._time.now(), self._stamped + 1)
        return Reading(self._stamped, row.values)


def _changed(path: Path) -> float | None:
    """None where it is no file, or is gone meanwhile."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_mtime if stat.S_ISREG(facts.st_mode) else None


class Followed:
    """One file that grows."""

    def __init__(self, path: Path, time_column: str, ledger: Ledger, *, at_end: bool) -> None:
        self._path, self._time_column, self._ledger = path, time_column, ledger
        self._at_end = at_end
        self._file: Growing | None = None
        self._table: Table | None = None
        self._identity = (0, 0)
        self._is_no_table = False

    def rows(self) -> list[Row]:
        """What was added, up to MAX_ROWS. ConnectorError where the file cannot be read."""
        try:
            self._open()
            if self._table is None and not self._begin():
                return []
            assert self._table is not None
            found: list[Row] = []
            for row in self._table.more():
                if row is not None:
                    found.append(row)
                if len(found) >= MAX_ROWS:
                    break
        except FileNotFoundError:
            return []  # it is gone since it was listed
        except OSError as error:
            raise ConnectorError(f"{self._path} cannot be read: {error.strerror}", "Check its rights.") from error
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._table = None

    def _open(self) -> None:
        facts = self._path.stat()
        if self._file is not None:
            is_other = (facts.st_dev, facts.st_ino) != self._identity
            if is_other or facts.st_size < self._file.tell():
                self.close()
                self._at_end = self._is_no_table = False
        if self._file is None:
            self._file = Growing(self._path.open("rb"))
            self._identity = (facts.st_dev, facts.st_ino)

    def _begin(self) -> bool:
        """Its head, once there is a row to tell what the columns are."""
        assert self._file is not None
        self._file.begin()
        if self._is_no_table or not self._file.has_lines(2):
            return False
        try:
            self._table = Table(self._file, str(self._path), self._time_column, self._ledger, ahead=not self._at_end)
        except ConnectorError as error:
            self._is_no_table = True
            self._ledger.received += 1
            self._ledger.drop("no-table", str(error))
            return False
        if self._at_end:
            self._file.skip_to_end()
        return True


class Growing:
    """Text of a file that somebody is writing: only lines whose end is there."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw

    def readline(self, size: int = -1, /) -> str:
        place = self._raw.tell()
        line = self._raw.readline(size)
        if not line.endswith(b"\n") and (size < 0 or len(line) < size):
            self._raw.seek(place)
            return ""
        return line.decode("utf-8-sig" if not place else "utf-8", "replace").replace("\r\n", "\n")

    def has_lines(self, count: int) -> bool:
        place = self._raw.tell()
        found = all(self.readline(1 << 20) for _ in range(count))
        self._raw.seek(place)
        return found

    def skip_to_end(self) -> None:
        """Of the last whole line."""
        self._raw.seek(0, os.SEEK_END)
        end = self._raw.tell()
        while end:
            begin = max(0, end - 4096)
            self._raw.seek(begin)
            at = self._raw.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        self._raw.seek(end)

    def tell(self) -> int:
        return self._raw.tell()

    def begin(self) -> None:
        self._raw.seek(0)

    def close(self) -> None:
        self._raw.close()
