"""The schemas, as numbered migrations: `PRAGMA user_version` says how many of them a file has seen.

Never change one that was released: add another. Each runs in one transaction together with its number.

sqlite-utils brings numpy (and pandas, where it is installed) into the process, 25 to 60 MB for a few statements that
are needed once in the life of a file: so a service lets `python -m appliance.store.migrations SCHEMA PATH` do it.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import DamagedError, StoreError

if TYPE_CHECKING:
    from sqlite_utils import Database

Migration = Callable[["Database"], None]

_DAMAGED = 11  # exit code of the child that found the file damaged
_TIMEOUT_S = 300


def history_tables(db: "Database") -> None:
    """Frames are what commits brought, as it came; chunks are made of them. `id` rises in order of arrival in both."""
    db.table("asset").create({"id": int, "path": str}, pk="id", not_null={"path"})
    db.table("asset").create_index(["path"], unique=True)
    db.table("layout").create({"id": int, "points": str}, pk="id", not_null={"points"})
    db.table("layout").create_index(["points"], unique=True)
    db.table("frame").create({"id": int, "first": int, "last": int, "rows": int, "size": int, "data": bytes}, pk="id")
    span = {"id": int, "asset": int, "first": int, "last": int}
    db.table("chunk").create({**span, "rows": int, "level": int, "points": str, "data": bytes}, pk="id")
    db.table("chunk").create_index(["asset", "first", "last"])
    db.table("chunk").create_index(["last"])
    db.execute("CREATE INDEX chunk_small ON chunk (level, asset) WHERE level < 9")  # those that will be merged
    db.table("block").create({**span, "size": int, "rate": float, "points": str, "data": bytes}, pk="id")
    db.table("block").create_index(["asset", "first", "last"])
    db.table("block").create_index(["last", "size"])


def alarm_tables(db: "Database") -> None:
    """A row for every state of every alarm, in order of arrival. What tells one state from another is unique."""
    text = ("asset", "id", "state", "severity", "cause", "condition", "branch", "model", "version", "device", "by")
    whole = ("at", "raised", "active", "until")
    columns = {"seq": int, **dict.fromkeys(text, str), **dict.fromkeys(whole, int), "message": str}
    db.table("change").create({**columns, "score": float, "threshold": float}, pk="seq", not_null=set(columns))
    identity = ["asset", "id", "at", "state", "severity", "active", "by", "until"]
    db.table("change").create_index(identity, unique=True)
    db.table("change").create_index(["at"])


def label_table(db: "Database") -> None:
    """What people said of spans of time. The same word said twice at one time is one row."""
    text = ("asset", "verdict", "by", "alarm", "condition", "cause")
    columns = {"seq": int, **dict.fromkeys(text, str), **dict.fromkeys(("at", "since", "until"), int)}
    db.table("label").create(columns, pk="seq", not_null=set(columns))
    db.table("label").create_index(["asset", "at", "verdict", "since", "until"], unique=True)


def outbox_tables(db: "Database") -> None:
    """What waits to leave. `first` is 0 until a frame's entries have numbers; `said` is the last state of each key,
    `recent` recognises what the bus delivers a second time, `book` counts and remembers marks."""
    whole = ("lane", "first", "last", "count", "level")
    columns = {"id": int, **dict.fromkeys(whole, int), "key": str, "data": bytes}
    db.table("frame").create(columns, pk="id", not_null=set(columns))
    db.table("frame").create_index(["lane", "first"])
    db.execute("CREATE INDEX frame_key ON frame (key) WHERE key <> ''")
    db.table("said").create({"id": int, "key": str, "digest": bytes}, pk="id", not_null={"key", "digest"})
    db.table("said").create_index(["key"], unique=True)
    db.table("recent").create({"id": int, "marks": bytes}, pk="id", not_null={"marks"})
    db.table("book").create({"name": str, "value": int}, pk="name", not_null={"value"})


def outbox_levels(db: "Database") -> None:
    """What was thinned least is found without looking at everything that waits."""
    db.table("frame").create_index(["lane", "level", "first"])


SCHEMAS: dict[str, tuple[Migration, ...]] = {
    "history": (history_tables,),
    "alarms": (alarm_tables, label_table),
    "outbox": (outbox_tables, outbox_levels),
}


def latest(schema: str) -> int:
    return len(SCHEMAS[schema])


def migrate(path: Path, schema: str) -> None:
    """Bring a file (or none) to the newest version. DamagedError, StoreError."""
    if "sqlite_utils" in sys.modules:  # the price is paid
        apply(path, SCHEMAS[schema])
        return
    command = [sys.executable, "-m", "appliance.store.migrations", schema, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(
            command, env=environment, stderr=subprocess.PIPE, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"{path}: its tables cannot be made: {error}", "Try again.") from error
    if done.returncode == _DAMAGED:
        raise DamagedError(f"{path} is damaged: {done.stderr.strip()}")
    if done.returncode:
        raise StoreError(f"{path}: its tables cannot be made: {done.stderr.strip()}", "Make room on its disk.")


def apply(path: Path, migrations: tuple[Migration, ...]) -> None:
    """Run those that the file has not seen yet, in this process."""
    from appliance.store.database import translated

    with translated(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _apply(connection, migrations)
        finally:
            connection.close()


def _apply(connection: sqlite3.Connection, migrations: tuple[Migration, ...]) -> None:
    from sqlite_utils import Database

    from appliance.store.database import transaction

    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded by an empty file only
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    db = Database(connection)
    for number, migration in enumerate(migrations, 1):
        with transaction(connection):  # another process may be at it too: who comes second finds it done
            if connection.execute("PRAGMA user_version").fetchone()[0] < number:
                migration(db)
                connection.execute(f"PRAGMA user_version = {number}")


def main(arguments: list[str]) -> int:
    schema, path = arguments
    # sqlite-utils imports them where they are installed and needs them for nothing here: two seconds of a first start.
    sys.modules.update(dict.fromkeys(("numpy", "pandas")))  # type: ignore[arg-type]  # None: an import is refused
    try:
        apply(Path(path), SCHEMAS[schema])
    except DamagedError as error:
        print(error.message, file=sys.stderr)
        return _DAMAGED
    except StoreError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
