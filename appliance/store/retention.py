"""What must go: what is too old, and the oldest where the budget is used up. Its space is given back."""

import logging

from appliance.store import database
from appliance.store.database import transaction
from appliance.store.shelf import Shelf
from appliance.store.space import PAGE, spare_pages

log = logging.getLogger(__name__)

_AT_ONCE = 64  # chunks or blocks of one transaction
_PAGES_AT_ONCE = 256


def expire(shelf: Shelf, cut: int) -> bool:
    """Delete some of what ended before `cut` (UTC ns)."""
    return _delete_oldest(shelf, "chunk", cut) or _delete_oldest(shelf, "block", cut)


def make_room(shelf: Shelf) -> bool:
    """Delete some of what is oldest where the budget is used up: what was set aside, then chunks and blocks."""
    aside = database.aside(shelf.path)
    if aside and bytes_on_disk(shelf) > shelf.space.budget:
        log.warning("%s is deleted: its space is needed", aside[0])
        database.delete(aside[0])
        return True
    pages, free = shelf.pages()
    if (pages - free) * PAGE <= shelf.space.room:
        return False
    return _delete_oldest(shelf, _next_to_go(shelf))


def bytes_on_disk(shelf: Shelf) -> int:
    """The database, its journal, and what was set aside."""
    return sum(database.bytes_on_disk(path) for path in (shelf.path, *database.aside(shelf.path)))


def clean(shelf: Shelf) -> None:
    """Forget layouts, and assets that nothing refers to. Only while there are no frames."""
    shelf.execute("DELETE FROM layout")
    shelf.forget_keys()
    if not shelf.deleted:
        return
    unused = shelf.execute(
        "SELECT id, path FROM asset WHERE NOT EXISTS (SELECT 1 FROM chunk WHERE asset = asset.id)"
        " AND NOT EXISTS (SELECT 1 FROM block WHERE asset = asset.id)"
    ).fetchall()
    shelf.connection.executemany("DELETE FROM asset WHERE id = ?", [(key,) for key, _ in unused])
    shelf.forgotten += [path for _, path in unused]
    shelf.deleted = False


def give_back(shelf: Shelf) -> bool:
    """Shrink the file by some of the pages that new readings will not want at once."""
    spare = min(spare_pages(*shelf.pages(), shelf.space), _PAGES_AT_ONCE)
    if spare:
        # A script: before Python 3.12 `execute` ends this pragma after one page. Only a checkpoint cuts the file.
        shelf.connection.executescript(f"PRAGMA incremental_vacuum({spare}); PRAGMA wal_checkpoint(PASSIVE)")
    return spare > 0


def _next_to_go(shelf: Shelf) -> str:
    if shelf.block_bytes > shelf.space.room // 2:
        return "block"  # waveforms are large: they may not drive out all readings
    chunk, block = shelf.value("SELECT MIN(last) FROM chunk"), shelf.value("SELECT MIN(last) FROM block")
    return "block" if block is not None and (chunk is None or block < chunk) else "chunk"


def _delete_oldest(shelf: Shelf, table: str, before: int | None = None) -> bool:
    """Delete some, if `before` is given only of those that ended before it; whether there were any."""
    condition, values = ("WHERE last < ?", [before]) if before is not None else ("", [])
    keys = shelf.execute(f"SELECT id FROM {table} {condition} ORDER BY last LIMIT {_AT_ONCE}", *values).fetchall()
    if not keys:
        return False
    with transaction(shelf.connection):
        shelf.connection.executemany(f"DELETE FROM {table} WHERE id = ?", keys)
    if table == "block":
        shelf.block_bytes = shelf.value("SELECT SUM(size) FROM block") or 0
    shelf.tally.deleted += len(keys)
    shelf.deleted = True
    return True
