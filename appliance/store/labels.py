"""What people said of spans of time, in the database of alarms: durable, and never deleted to make room."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliance.errors import EventError
from appliance.events.schema import Label
from appliance.store import database
from appliance.store.database import translated

MAX_TEXT = 200  # characters; longer ones are cut
_LONGEST = 1 << 63
_FIELDS = tuple(field.name for field in msgspec.structs.fields(Label))
_COLUMNS = ", ".join(f'"{name}"' for name in _FIELDS)
_INSERT = f"INSERT OR IGNORE INTO label (asset, {_COLUMNS}) VALUES ({', '.join('?' * (len(_FIELDS) + 1))})"


class Labelled(NamedTuple):
    """An asset's label."""

    asset: str
    label: Label


def check(label: Label) -> None:
    """EventError("shape") for what the database cannot hold, or what makes no sense."""
    if not all(0 <= at < _LONGEST for at in (label.at, label.since, label.until)) or label.until < label.since:
        raise EventError("shape", f"a label from {label.since} to {label.until}, said at {label.at}")


def insert(connection: sqlite3.Connection, found: list[Labelled]) -> int:
    """How many were new."""
    return connection.executemany(_INSERT, [_row(labelled) for labelled in found]).rowcount if found else 0


def read(path: Path, asset: str | None = None, limit: int = 10_000) -> list[Labelled]:
    """The newest labels (of an asset, or of all), the newest first, read beside the service that writes."""
    condition, values = ("WHERE asset = ?", [asset]) if asset else ("", [])
    query = f"SELECT asset, {_COLUMNS} FROM label {condition} ORDER BY at DESC, seq DESC LIMIT ?"
    with closing(database.open_reading(path, "alarms")) as connection, translated(path):
        rows = connection.execute(query, (*values, limit)).fetchall()
    return [Labelled(name, msgspec.convert(dict(zip(_FIELDS, rest, strict=True)), Label)) for name, *rest in rows]


def _row(labelled: Labelled) -> tuple[object, ...]:
    values = (getattr(labelled.label, name) for name in _FIELDS)
    return (labelled.asset, *(str(value)[:MAX_TEXT] if isinstance(value, str) else value for value in values))
