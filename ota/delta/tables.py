"""Context tables: which contexts share a table, and the tables in few bytes.

A frequency is kept as its logarithm in steps of a quarter octave; integers alone turn it back. Contexts are merged
while that saves more table than it costs data, so a small model has few tables.
"""

from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta.adaptive import Reader, Writer
from ota.delta.errors import PatchError
from ota.delta.rans import PRECISION, SYMBOLS, TOTAL, Tables
from ota.delta.tokens import CONTEXTS, FAMILIES

MAX_TABLES = 96
STEPS = 4  # to an octave
_DEEPEST = PRECISION * STEPS
_POWERS = (256, 304, 362, 431)  # 2^(8 + i/4)
_ENTRY_BITS = 5.0  # of a table, about, each
_TABLE_BITS = 24.0
_START = 160  # contexts that are merged two by two; rarer ones join the nearest before

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Book:
    """`tables` and, for every context of every family, the number of its table (0 where it never occurs)."""

    tables: Tables
    chosen: NDArray[np.uint8]  # FAMILIES x CONTEXTS


def build(counts: Counts) -> tuple[bytes, Book]:
    """From counts [FAMILIES * CONTEXTS, SYMBOLS] the bytes of the tables, and what a decoder makes of them."""
    used = np.flatnonzero(counts.any(axis=1))
    groups = _merge(counts[used], used)
    levels = [_quantised(counts[members].sum(axis=0)) for members in groups]
    owner = np.zeros(FAMILIES * CONTEXTS, np.int64)
    for number, members in enumerate(groups):
        owner[members] = number + 1
    data = _write(owner, levels)
    return data, parse(data)


def _merge(counts: Counts, names: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Groups of contexts, ordered by their first."""
    if not len(names):
        return []
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    members = [[int(i)] for i in order[:_START]]
    sums = counts[order[:_START]].astype(np.float64)
    for i in order[_START:]:
        nearest = int(np.argmin(_joint(sums, counts[i]) - _cost(sums)))
        sums[nearest] += counts[i]
        members[nearest].append(int(i))
    _pair(sums, members)
    return sorted((np.sort(names[group]) for group in members if group), key=lambda group: int(group[0]))


def _cost(counts: Any) -> Any:
    """Bits of the symbols under their own frequencies, and of the table; by row."""
    total = counts.sum(axis=-1)
    rows = np.where(counts > 0, counts * np.log2(np.maximum(counts, 1)), 0).sum(axis=-1)
    data = total * np.log2(np.maximum(total, 1)) - rows
    return data + _ENTRY_BITS * (counts > 0).sum(axis=-1) + _TABLE_BITS


def _joint(sums: Any, one: Any) -> Any:
    return _cost(sums + one)


def _pair(sums: Any, members: list[list[int]]) -> None:
    """Merges the cheapest pair again and again, while it saves or there are too many."""
    count = len(sums)
    cost = _cost(sums)
    gain = np.full((count, count), np.inf)
    for i in range(count):
        gain[i, i + 1 :] = _joint(sums[i + 1 :], sums[i]) - cost[i] - cost[i + 1 :]
    alive = count
    while alive > 1:
        i, j = divmod(int(np.argmin(gain)), count)
        if gain[i, j] >= 0 and alive <= MAX_TABLES:
            break
        sums[i] += sums[j]
        members[i] += members[j]
        members[j] = []
        cost[i] = _cost(sums[i])
        gain[j, :] = gain[:, j] = np.inf
        fresh = _joint(sums, sums[i]) - cost[i] - cost
        living = np.array([bool(group) for group in members])
        gain[i, i + 1 :] = np.where(living[i + 1 :], fresh[i + 1 :], np.inf)
        gain[:i, i] = np.where(living[:i], fresh[:i], np.inf)
        alive -= 1


def _quantised(counts: Counts) -> list[int]:
    """0 for a symbol that does not occur, else 1 + the steps below certainty, deepest last."""
    total = int(counts.sum())
    return [0 if c == 0 else 1 + min(_DEEPEST, round(-STEPS * log2(int(c) / total))) for c in counts.tolist()]


def _frequencies(levels: list[int]) -> NDArray[np.uint32]:
    """Frequencies of one table that add up to TOTAL, none of an occurring symbol below one."""
    weights = [_weight(_DEEPEST + 1 - level) if level else 0 for level in levels]
    total = sum(weights)
    shares = [max(1, weight * TOTAL // total) if weight else 0 for weight in weights]
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    rest, at = TOTAL - sum(shares), 0
    while rest:
        change = _fair(shares[order[at]], rest)
        shares[order[at]] += change
        rest -= change
        at = (at + 1) % len(order)
    return np.array(shares, np.uint32)


def _weight(steps: int) -> int:
    return _POWERS[steps % STEPS] << steps // STEPS


def _fair(share: int, rest: int) -> int:
    """What a symbol takes of a remainder: in proportion, and never to nothing."""
    if share == 0:
        return 0
    part = -(-abs(rest) * share // TOTAL)
    return part if rest > 0 else -min(part, share - 1)


def _write(owner: NDArray[np.int64], levels: list[list[int]]) -> bytes:
    writer = Writer()
    writer.number("tables", len(levels))
    for number in range(len(levels)):
        _write_levels(writer, levels[number], levels[number - 1] if number else [0] * SYMBOLS)
    for of_family in owner.reshape(FAMILIES, CONTEXTS):
        places = np.flatnonzero(of_family)
        writer.number("contexts", len(places))
        last, before = -1, 0
        for place in places.tolist():
            writer.number("skip", place - last - 1)
            same = int(of_family[place]) == before
            writer.bit("same", same)
            if not same:
                writer.signed("table", int(of_family[place]) - before)
            last, before = place, int(of_family[place])
    return writer.finish()


def _write_levels(writer: Writer, levels: list[int], before: list[int]) -> None:
    length = max(i for i, level in enumerate(levels) if level) + 1
    writer.number("length", length)
    for i in range(length):
        guess, context = _guess(levels, before, i)
        writer.bit(("occurs", context), int(levels[i] > 0))
        if levels[i]:
            writer.signed(("level", context), levels[i] - guess)


def _guess(levels: list[int], before: list[int], i: int) -> tuple[int, int]:
    """What a level is likely to be: as two before (the same sign), corrected by the table before."""
    near = levels[i - 2] if i >= 2 and levels[i - 2] else levels[i - 1] if i >= 1 else 0
    context = (i >= 1 and levels[i - 1] > 0) + 2 * (i >= 2 and levels[i - 2] > 0)
    return (near, context) if near else (before[i] or 8, context)


def parse(data: bytes) -> Book:
    """PatchError for anything that `build` cannot have written."""
    reader = Reader(data)
    count = reader.number("tables")
    if count > MAX_TABLES:
        raise PatchError(f"{count} context tables; {MAX_TABLES} are allowed")
    levels: list[list[int]] = []
    for number in range(count):
        levels.append(_read_levels(reader, levels[number - 1] if number else [0] * SYMBOLS))
    rows = [_frequencies(table) for table in levels]
    chosen = np.stack([_read_contexts(reader, count) for _ in range(FAMILIES)])
    return Book(Tables(np.stack(rows) if rows else np.zeros((0, SYMBOLS), np.uint32)), chosen)


def _read_levels(reader: Reader, before: list[int]) -> list[int]:
    length = reader.number("length")
    if not 1 <= length <= SYMBOLS:
        raise PatchError("a context table of a wrong length")
    levels = [0] * SYMBOLS
    for i in range(length):
        guess, context = _guess(levels, before, i)
        if reader.bit(("occurs", context)):
            levels[i] = guess + reader.signed(("level", context))
            if not 1 <= levels[i] <= _DEEPEST + 1:
                raise PatchError("a context table holds a frequency out of range")
    if not any(levels):
        raise PatchError("a context table is empty")
    return levels


def _read_contexts(reader: Reader, count: int) -> NDArray[np.uint8]:
    chosen = np.zeros(CONTEXTS, np.uint8)
    place, before = -1, 0
    occurring = reader.number("contexts")
    if occurring > CONTEXTS:
        raise PatchError("more contexts than there are")
    for _ in range(occurring):
        place += reader.number("skip") + 1
        if not reader.bit("same"):
            before += reader.signed("table")
        if place >= CONTEXTS or not 1 <= before <= count:
            raise PatchError("a context or its table is out of range")
        chosen[place] = before - 1
    return chosen
