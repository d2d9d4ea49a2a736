"""Recordings in CSV files, played back as if their machines ran now.

    [connectors.replay]
    file = "recordings/pump.csv"      # or several: ["a.csv", "b.csv"], or a folder of them
    speed = 10                        # ten times as fast as recorded; 0: as fast as the bus takes it

The first line names the columns, separated by , ; or tab. The first column is the time: ISO 8601, an epoch in s, ms or
ns, or a row number (then a row is a second). Columns of numbers become points under their own names, others are left
out and named in the log, labels (`anomaly`, `changepoint`) are never published. Several files play side by side, each
an asset of its own; with `asset` they are one recording and play one after the other.
"""

import heapq
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NamedTuple, Self, TextIO

from msgspec import Meta, Struct

from appliance.connectors._names import checked, level
from appliance.connectors._pace import REAL, Time
from appliance.connectors._table import Row, Table
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError
from appliance.events.ledger import Ledger
from appliance.events.schema import Reading

log = logging.getLogger(__name__)

MAX_FILES = 256  # played at once
BATCH = 500  # rows handed over at once
PAUSE_S = 0.005  # no wake-up for less
STEP = 1000  # ns by which two readings differ at least, where the clock gives them the same time


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Recordings in CSV files."""

    file: Annotated[str | list[str], Meta(description="A file, a list of files, or a folder with `*.csv`.")]
    asset: Annotated[str, Meta(description="The asset; empty: `replay/<file name>`, one for each file.")] = ""
    speed: Annotated[
        float, Meta(ge=0, le=1_000_000, description="1: as recorded, 10: ten times as fast, 0: as fast as possible.")
    ] = 1.0
    rows_per_second: Annotated[
        float,
        Meta(ge=0, le=1_000_000, description="Rows of each file per second, whatever was recorded; 0: see speed."),
    ] = 0.0
    stamp: Annotated[
        Literal["now", "recorded"], Meta(description="The time of a reading: when it is played, or as recorded.")
    ] = "now"
    time_column: Annotated[str, Meta(description="The column with the times; empty: the first.")] = ""
    start_row: Annotated[int, Meta(ge=0, description="Rows left out at the beginning of each file.")] = 0
    rows: Annotated[int, Meta(ge=0, description="Rows played of each file; 0: all.")] = 0
    repeat: Annotated[bool, Meta(description="Begin again at the end, for ever.")] = False


def create(settings: Settings, time: Time = REAL) -> "Replay":
    return Replay(settings, time)


class Due(NamedTuple):
    """A row (None: a broken one), and when it is played, in seconds after the beginning."""

    due_s: float
    asset: str
    row: Row | None


class Replay:
    def __init__(self, settings: Settings, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._time = settings, time
        if settings.asset:
            checked(settings.asset)
        if settings.repeat and settings.stamp == "recorded":
            raise ConfigError(
                "a recording cannot repeat with its recorded times", 'Leave out repeat, or set stamp = "now".'
            )
        self._tracks: list[tuple[str, list[Path]]] = []
        self._stamped = 0

    def assets(self) -> list[str]:
        return [asset for asset, _ in _tracks(_files(self._settings.file), self._settings.asset)]

    async def __aenter__(self) -> Self:
        files = _files(self._settings.file)
        self._tracks = _tracks(files, self._settings.asset)
        for path in files:  # all of them now: a file that cannot be played is told before the first row
            with _opened(path) as file:
                self._announce(self._table(file, path, Ledger()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        begin = self._time.timer()
        batch: list[Arrival] = []
        for count, due in enumerate(self._playlist(), 1):
            ahead_s = begin + due.due_s - self._time.timer()
            if batch and (ahead_s > 0 or len(batch) >= BATCH):
                yield self._handed_over(batch)
                batch = []
            if ahead_s > 0:
                await self._time.wait(max(ahead_s, PAUSE_S))
            elif count % BATCH == 0:
                await self._time.wait(0)  # others get their turn, even where no row fits
            if due.row:
                batch.append(Arrival(due.asset, Reading(self._stamp(due.row), due.row.values)))
        if batch:
            yield self._handed_over(batch)

    def _handed_over(self, batch: list[Arrival]) -> list[Arrival]:
        self.ledger.processed += len(batch)
        return batch

    def _playlist(self) -> Iterator[Due]:
        """All rows of all files in the order they are due."""
        return heapq.merge(*(self._play(asset, paths) for asset, paths in self._tracks), key=lambda due: due.due_s)

    def _play(self, asset: str, paths: list[Path]) -> Iterator[Due]:
        """The rows of files that follow each other."""
        begin_s = 0.0
        while True:
            end_s, played = begin_s, 0
            for path in paths:
                for offset_s, row in self._timed(path):
                    end_s, played = begin_s + offset_s, played + (row is not None)
                    yield Due(end_s, asset, row)
                begin_s = end_s + self._step_s()
            if not self._settings.repeat:
                return
            if not played:
                raise ConnectorError(f"no row of {asset} could be played", "See 'millwright doctor' for the reasons.")

    def _timed(self, path: Path) -> Iterator[tuple[float, Row | None]]:
        """The rows of one file and their offsets in s. Time that was recorded running backwards stands still."""
        settings = self._settings
        with _opened(path) as file:
            table = self._table(file, path, self.ledger)
            chosen = islice(
                table.rows(), settings.start_row, settings.start_row + settings.rows if settings.rows else None
            )
            first: int | None = None
            offset_s = 0.0
            for index, row in enumerate(chosen):
                if settings.rows_per_second or not settings.speed or not table.columns.timed:
                    offset_s = index * self._step_s()
                elif row and row.at is not None:
                    first = row.at if first is None else first
                    offset_s = max(offset_s, (row.at - first) / 1e9 / settings.speed)
                yield offset_s, row

    def _step_s(self) -> float:
        """Seconds from a row to the next where its recorded time does not say."""
        settings = self._settings
        if settings.rows_per_second:
            return 1 / settings.rows_per_second
        return 1 / settings.speed if settings.speed else 0.0

    def _table(self, file: TextIO, path: Path, ledger: Ledger) -> Table:
        table = Table(file, str(path), self._settings.time_column, ledger)
        if self._settings.stamp == "recorded" and not table.columns.timed:
            raise ConnectorError(f"{path} has no times that can be read", 'Set stamp = "now", or name time_column.')
        return table

    def _announce(self, table: Table) -> None:
        points = len(table.columns.points)
        left_out = f"; left out: {', '.join(table.columns.left_out)}" if table.columns.left_out else ""
        times = "" if table.columns.timed else "; no times, a row counts as a second"
        log.info("%s: %d points%s%s", table.source, points, left_out, times)

    def _stamp(self, row: Row) -> int:
        if self._settings.stamp == "recorded" and row.at is not None:
            return row.at
        self._stamped = max(self._time.now(), self._stamped + STEP)
        return self._stamped


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            yield file
    except OSError as error:
        raise ConnectorError(f"{path} cannot be read: {error.strerror}", "Check its rights and its disk.") from error


def _files(named: str | list[str]) -> list[Path]:
    files: list[Path] = []
    for name in [named] if isinstance(named, str) else named:
        path = Path(name).expanduser()
        files += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise ConnectorError(f"there is no CSV file in {named!r}", "Set 'file' of [connectors.replay] to a recording.")
    if len(files) > MAX_FILES:
        raise ConnectorError(f"{len(files)} recordings are too many at once", f"Name at most {MAX_FILES}.")
    for path in files:
        if not path.is_file():
            raise ConnectorError(f"there is no recording at {path}", "Check 'file' of [connectors.replay].")
    return files


def _tracks(files: list[Path], asset: str) -> list[tuple[str, list[Path]]]:
    """Asset -> its files. Files of the same name get their folder's name as well."""
    if asset:
        return [(asset, files)]
    stems = [level(path.stem, "recording") for path in files]
    tracks: dict[str, list[Path]] = {}
    for stem, path in zip(stems, files, strict=True):
        own = stem if stems.count(stem) == 1 else f"{level(path.absolute().parent.name, 'folder')}/{stem}"
        tracks.setdefault(f"replay/{own}", []).append(path)
    return list(tracks.items())
