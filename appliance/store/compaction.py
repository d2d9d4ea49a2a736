"""Frames become chunks, small chunks become larger ones. Each step is one transaction: nothing is ever half done."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from appliance.store import frame
from appliance.store.database import transaction
from appliance.store.frame import Part, Section
from appliance.store.retention import clean
from appliance.store.seal import RotError
from appliance.store.shelf import Shelf

if TYPE_CHECKING:
    from appliance.store.chunk import Chunk

FULL = 9  # level of a chunk that is merged no further
FAN = 8  # chunks of a level that make one of the next
FOLD_AFTER = 600_000_000_000  # ns; frames become chunks at this age at the latest

_FULL_ROWS = 2048


def fold(shelf: Shelf, now: int) -> bool:
    """Turn all frames into chunks, where they are enough or old enough."""
    if shelf.tail_since is None or not (shelf.tail_bytes >= shelf.space.tail or now - shelf.tail_since >= FOLD_AFTER):
        return False
    with transaction(shelf.connection):
        for asset, parts in _tail(shelf).items():
            _write_chunks(shelf, asset, parts, 0)
        shelf.execute("DELETE FROM frame")
        clean(shelf)
    shelf.tail_bytes, shelf.tail_since = 0, None
    return True


def merge(shelf: Shelf) -> bool:
    """Make one chunk, or a few full ones, of the oldest small ones of one asset and level."""
    found = shelf.execute(
        "SELECT level, asset FROM chunk WHERE level < 9 GROUP BY level, asset HAVING COUNT(*) >= ? LIMIT 1", FAN
    ).fetchone()
    if found is None:
        return False
    level, asset = found
    rows = shelf.execute(
        "SELECT id, points, data FROM chunk WHERE level = ? AND level < 9 AND asset = ? ORDER BY id LIMIT ?",
        *(level, asset, FAN),
    ).fetchall()
    whole, rotten = _open_chunks(shelf, rows)
    with transaction(shelf.connection):
        shelf.connection.executemany("DELETE FROM chunk WHERE id = ?", [(key,) for key in whole])
        # What is rotten stays for whoever can read it, and out of the way.
        shelf.connection.executemany("UPDATE chunk SET level = 9 WHERE id = ?", [(key,) for key in rotten])
        _write_chunks(shelf, asset, list(whole.values()), level + 1, list(whole))
    return True


def _tail(shelf: Shelf) -> dict[int, list[Part]]:
    """What the frames hold, by asset, in order of arrival; neighbours with the same points are joined."""
    layouts = {key: tuple(json.loads(points)) for key, points in shelf.execute("SELECT id, points FROM layout")}
    found: dict[int, list[tuple[int, bytearray, bytearray]]] = {}
    for key, data in shelf.execute("SELECT id, data FROM frame ORDER BY id"):
        for section in _sections(shelf, key, data):
            parts = found.setdefault(section.asset, [])
            if not parts or parts[-1][0] != section.layout:
                parts.append((section.layout, bytearray(), bytearray()))
            parts[-1][1].extend(section.times)
            parts[-1][2].extend(section.values)
    return {
        asset: [Part(layouts[layout], bytes(times), bytes(values)) for layout, times, values in parts]
        for asset, parts in found.items()
    }


def _sections(shelf: Shelf, key: int, data: bytes) -> list[Section]:
    try:
        return frame.decode(data)
    except RotError as error:
        shelf.report_rot(f"frame {key}", error)
        return []


def _open_chunks(shelf: Shelf, rows: Sequence[tuple[int, str, bytes]]) -> tuple[dict[int, "Chunk"], list[int]]:
    from appliance.store import chunk

    whole: dict[int, Chunk] = {}
    rotten: list[int] = []
    for key, points, data in rows:
        try:
            whole[key] = chunk.decode(tuple(json.loads(points)), data)
        except RotError as error:
            shelf.report_rot(f"chunk {key}", error)
            rotten.append(key)
    return whole, rotten


def _write_chunks(
    shelf: Shelf, asset: int, parts: Sequence["Part | Chunk"], level: int, keys: Sequence[int] = ()
) -> None:
    """New chunks take the newest of `keys`, which keeps the order of arrival."""
    from appliance.store import chunk  # brings numpy, which is not needed before the first fold

    chunks, repeats = chunk.gather(parts)
    shelf.tally.repeats += repeats
    free = iter(keys[max(0, len(keys) - len(chunks)) :])
    for made in chunks:
        data = chunk.encode(made)
        full = made.rows >= _FULL_ROWS or len(data) >= shelf.space.merged
        shelf.execute(
            "INSERT INTO chunk (id, asset, first, last, rows, level, points, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(next(free, None) or shelf.take_id(), asset, int(made.times[0]), int(made.times[-1])),
            *(made.rows, FULL if full else min(level, FULL - 1), chunk.points_text(made.points), data),
        )
