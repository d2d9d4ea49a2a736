"""A chunk: some thousand readings of one asset, column by column, compressed. Pure; values come back bit for bit.

Sensors speak in decimals: a column whose values are all `whole / 10^k` exactly (as doubles, or as floats that were
widened) is kept as differences of whole numbers, two or three times smaller than any packing of the doubles. Times
are kept as differences of differences. Then bytes of equal weight are brought together and zstandard does the rest.

NaN marks a point that a reading did not have; readings themselves are finite.
"""

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.store.frame import Part, Points
from appliance.store.seal import RotError, seal, unseal

MAX_ROWS = 4096
MAX_CELLS = 1 << 18  # rows times points: 2 MB while it is open
LEVEL = 3  # of zstandard

_RAW = -1
_WIDENED = 64  # added to the exponent of a column of widened float32
_EXPONENTS = [*range(10), *range(_WIDENED, _WIDENED + 8)]
_EXACT = float(1 << 53)
_SAMPLE = 64  # rows looked at before a whole column is
_SPARSE = 4  # a chunk may have this many cells for each value

Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]


class Chunk(NamedTuple):
    """`times` int64[n] UTC ns, strictly rising once gathered; `columns` float64[points, n]."""

    points: Points
    times: Longs
    columns: Doubles

    @property
    def rows(self) -> int:
        return len(self.times)

    def readings(self) -> Iterator[tuple[int, list[float]]]:
        """Rows in order of time; NaN where a point is absent."""
        return zip(self.times.tolist(), self.columns.T.tolist(), strict=True)


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    version: int
    rows: int
    exponents: list[int]  # a point
    absent: bytes  # a bit a cell, empty where nothing is absent
    body: bytes  # (1 + points) x 8 x rows: times first, bytes of equal weight together


_wire = msgspec.msgpack.Decoder(_Wire)


def encode(chunk: Chunk) -> bytes:
    absent = np.isnan(chunk.columns)
    gaps = bool(absent.any())
    columns = _fill(chunk.columns, absent) if gaps else chunk.columns
    exponents = _exponents(columns)
    longs = np.empty((1 + len(columns), chunk.rows), np.int64)
    longs[0] = _rises(_rises(chunk.times))
    for exponent in set(exponents.tolist()):
        some = np.flatnonzero(exponents == exponent)
        longs[1 + some] = (
            columns[some].view(np.int64) if exponent == _RAW else _rises(_whole(columns[some], exponent)[0])
        )
    wire = _Wire(
        1, chunk.rows, exponents.tolist(), np.packbits(absent).tobytes() if gaps else b"", _shuffle(_zigzag(longs))
    )
    return seal(msgspec.msgpack.encode(wire), LEVEL, _context(chunk.points))


def decode(points: Points, blob: bytes) -> Chunk:
    """RotError where the blob is not what `encode` made for these points."""
    try:
        wire = _wire.decode(unseal(blob, _context(points)))
    except msgspec.DecodeError as error:
        raise RotError(str(error)) from error
    if wire.version != 1 or len(wire.exponents) != len(points):
        raise RotError(f"version {wire.version}, {len(wire.exponents)} columns")
    longs = _unzigzag(_unshuffle(wire.body, 1 + len(points), wire.rows))
    columns, exponents = np.empty((len(points), wire.rows), np.float64), np.array(wire.exponents)
    for exponent in set(wire.exponents):
        some = np.flatnonzero(exponents == exponent)
        rows = longs[1 + some]
        columns[some] = rows.view(np.float64) if exponent == _RAW else _back(np.cumsum(rows, axis=1), exponent)
    if wire.absent:
        absent = np.unpackbits(np.frombuffer(wire.absent, np.uint8), count=columns.size)
        columns[absent.reshape(columns.shape).astype(bool)] = np.nan
    return Chunk(points, np.cumsum(np.cumsum(longs[0])), columns)


def gather(parts: Iterable[Part | Chunk]) -> tuple[list[Chunk], int]:
    """Chunks of parts that are given in order of arrival, and how many readings were repeats.

    Readings of one time become one: the first value of a point stands, a later reading adds the points it lacks.
    """
    chunks: list[Chunk] = []
    repeats = 0
    for group in _alike([of_part(part) if isinstance(part, Part) else part for part in parts]):
        whole = _unite(group)
        repeats += sum(part.rows for part in group) - whole.rows
        chunks += _split(whole)
    return chunks, repeats


def of_part(part: Part) -> Chunk:
    """As it came: times may repeat and run backwards."""
    times = np.frombuffer(part.times, np.int64)
    values = np.frombuffer(part.values, np.float64).reshape(len(times), len(part.points))
    return Chunk(part.points, times, values.T)


def points_text(points: Points) -> str:
    return json.dumps(points, ensure_ascii=False, separators=(",", ":"))


def _context(points: Points) -> bytes:
    return points_text(points).encode("utf-8", "surrogatepass")


# Gathering


def _alike(parts: list[Chunk]) -> Iterator[list[Chunk]]:
    """Runs of parts that share enough points to stand in one table."""
    group: list[Chunk] = []
    names: set[str] = set()
    rows = filled = 0
    for part in parts:
        union = names.union(part.points)
        more = part.rows * len(part.points)
        if group and len(union) * (rows + part.rows) > _SPARSE * (filled + more):
            yield group
            group, union, rows, filled = [], set(part.points), 0, 0
        group.append(part)
        names, rows, filled = union, rows + part.rows, filled + more
    if group:
        yield group


def _unite(group: list[Chunk]) -> Chunk:
    points = tuple(dict.fromkeys(name for part in group for name in part.points))
    times = np.concatenate([part.times for part in group])
    columns = np.full((len(points), len(times)), np.nan)
    place = {name: row for row, name in enumerate(points)}
    start = 0
    for part in group:
        columns[[place[name] for name in part.points], start : start + part.rows] = part.columns
        start += part.rows
    if len(times) < 2 or bool((np.diff(times) > 0).all()):
        return Chunk(points, times, columns)
    order = np.argsort(times, kind="stable")
    return _without_repeats(Chunk(points, times[order], columns[:, order]))


def _without_repeats(chunk: Chunk) -> Chunk:
    """Times are sorted, equal ones in order of arrival."""
    times, columns = chunk.times, chunk.columns
    repeats = np.flatnonzero(np.diff(times) == 0) + 1
    for index in repeats[::-1]:  # backwards, so that a third one is added to the second first
        columns[:, index - 1] = np.where(np.isnan(columns[:, index - 1]), columns[:, index], columns[:, index - 1])
    return Chunk(chunk.points, np.delete(times, repeats), np.delete(columns, repeats, axis=1))


def _split(chunk: Chunk) -> Iterator[Chunk]:
    size = max(1, min(MAX_ROWS, MAX_CELLS // len(chunk.points)))
    for start in range(0, chunk.rows, size):
        columns = np.ascontiguousarray(chunk.columns[:, start : start + size])
        yield Chunk(chunk.points, chunk.times[start : start + size], columns)


# Columns


def _fill(columns: Doubles, absent: NDArray[np.bool_]) -> Doubles:
    """An absent value becomes the one before it, which costs nothing to store."""
    latest = np.maximum.accumulate(np.where(absent, 0, np.arange(columns.shape[1])), axis=1)
    filled = np.take_along_axis(columns, latest, axis=1)
    filled[np.isnan(filled)] = 0.0  # before the first
    return filled


def _exponents(columns: Doubles) -> Longs:
    """int64[points]: a column's exponent, or _RAW where its values are not decimals."""
    found = np.full(len(columns), _RAW)
    sample = np.ascontiguousarray(columns[:, :: max(1, columns.shape[1] // _SAMPLE)])
    for exponent in _EXPONENTS:
        left = np.flatnonzero(found == _RAW)
        if not len(left):
            break
        likely = left[_is_exact(sample[left], exponent)]
        if len(likely):
            found[likely[_is_exact(columns[likely], exponent)]] = exponent
    return found


def _is_exact(columns: Doubles, exponent: int) -> NDArray[np.bool_]:
    """bool[points]: the whole numbers give back every bit (so -0.0 is no decimal)."""
    whole, fits = _whole(columns, exponent)
    back = _back(whole, exponent)
    exact: NDArray[np.bool_] = (fits & (back.view(np.int64) == columns.view(np.int64))).all(axis=1)
    return exact


def _whole(values: Doubles, exponent: int) -> tuple[Longs, NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        scaled = np.rint(values * 10.0 ** (exponent % _WIDENED))
    fits = np.abs(scaled) < _EXACT
    return np.where(fits, scaled, 0.0).astype(np.int64), fits


def _back(whole: Longs, exponent: int) -> Doubles:
    values = whole / 10.0 ** (exponent % _WIDENED)
    if exponent >= _WIDENED:
        with np.errstate(under="ignore"):
            return values.astype(np.float32).astype(np.float64)
    return values


def _rises(longs: Longs) -> Longs:
    rises = longs.copy()
    rises[..., 1:] -= longs[..., :-1]
    return rises


def _zigzag(longs: Longs) -> Longs:
    """Small numbers of either sign get high bytes of zero."""
    return (longs << 1) ^ (longs >> 63)


def _unzigzag(longs: Longs) -> Longs:
    return ((longs >> 1) & np.int64((1 << 63) - 1)) ^ -(longs & 1)


def _shuffle(longs: Longs) -> bytes:
    rows, count = longs.shape
    return np.ascontiguousarray(longs.view(np.uint8).reshape(rows, count, 8).transpose(0, 2, 1)).tobytes()


def _unshuffle(body: bytes, rows: int, count: int) -> Longs:
    if len(body) != rows * count * 8:
        raise RotError(f"{len(body)} bytes for {rows} rows of {count}")
    table = np.frombuffer(body, np.uint8).reshape(rows, 8, count).transpose(0, 2, 1)
    return np.ascontiguousarray(table).view(np.int64).reshape(rows, count)
