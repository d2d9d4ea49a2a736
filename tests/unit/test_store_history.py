"""The history's database: what is committed is read back in order, the budget is kept, damage is survived."""

import random
import sqlite3
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlite_utils  # which also lets migrations run in this process

from appliance.errors import DamagedError, StoreError
from appliance.events.schema import Block
from appliance.store import database, migrations
from appliance.store import reader as reader_module
from appliance.store.frame import Part
from appliance.store.history import Commit, History
from appliance.store.reader import FOREVER, Reader, reading
from appliance.store.space import PAGE, share, spare_pages

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
NOW = 1_700_000_000 * SECOND
MB = 1 << 20

Rows = list[tuple[int, dict[str, float]]]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    store = History(tmp_path / "history.sqlite", 64 * MB, 365 * DAY)
    store.open()
    yield store
    store.close()


def commit(asset: str, rows: Rows) -> Commit:
    parts = [
        (asset, Part(tuple(values), array("q", [at]).tobytes(), array("d", values.values()).tobytes()))
        for at, values in rows
    ]
    return Commit(parts, [])


def tidy(history: History, now: int) -> None:
    while history.tidy(now):
        pass


def read(history: History, asset: str, since: int = 0, until: int = FOREVER) -> Rows:
    with reading(history.path) as reader:
        forwards = [(one.at, one.values) for one in reader.readings(asset, since, until)]
        backwards = [(one.at, one.values) for one in reader.readings(asset, since, until, newest_first=True)]
    assert backwards == forwards[::-1]
    return forwards


def chunks(history: History) -> int:
    with sqlite3.connect(history.path) as db:
        found: int = db.execute("SELECT COUNT(*) FROM chunk").fetchone()[0]
    db.close()
    return found


def spoil(history: History, table: str, key: int) -> None:
    """Flip a bit in the middle of a blob."""
    db = sqlite3.connect(history.path, isolation_level=None)
    data = bytearray(db.execute(f"SELECT data FROM {table} WHERE id = ?", (key,)).fetchone()[0])
    data[len(data) // 2] ^= 1
    db.execute(f"UPDATE {table} SET data = ? WHERE id = ?", (bytes(data), key))
    db.close()


def ids(history: History, table: str) -> list[int]:
    db = sqlite3.connect(history.path)
    found = [key for (key,) in db.execute(f"SELECT id FROM {table} ORDER BY id")]
    db.close()
    return found


@pytest.mark.parametrize("seed", range(6))
def test_disorder_comes_back_in_order(history: History, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times run backwards, points come and go, readings repeat; folding and merging happen at any moment."""
    if seed % 2:  # small pages
        monkeypatch.setattr(reader_module, "_PAGE", 2000)
        monkeypatch.setattr(reader_module, "_SOURCES", 3)
    dice, now = random.Random(seed), NOW
    model: dict[str, dict[int, dict[str, float]]] = {"a": {}, "line1/b": {}}
    for _ in range(120):
        asset = dice.choice(list(model))
        rows: Rows = []
        for _ in range(dice.randrange(1, 30)):
            at = NOW + dice.randrange(-2000, 2000) * SECOND
            names = dice.sample("xyz", dice.randrange(1, 4))
            rows.append((at, {name: dice.choice([dice.random(), dice.randrange(99) / 10]) for name in names}))
        history.append(commit(asset, rows), now)
        for at, values in rows:
            model[asset][at] = {**values, **model[asset].get(at, {})}
        now += dice.choice([SECOND, 700 * SECOND])
        history.tidy(now)
    for asset, expected in model.items():
        assert read(history, asset) == sorted(expected.items())
        assert read(history, asset, since=NOW - 50 * SECOND, until=NOW + 50 * SECOND) == [
            (at, values) for at, values in sorted(expected.items()) if abs(at - NOW) <= 50 * SECOND
        ]
    tidy(history, now + DAY)
    assert {asset: read(history, asset) for asset in model} == {
        asset: sorted(expected.items()) for asset, expected in model.items()
    }
    with reading(history.path) as reader:
        assert set(reader.points("a")) == {"x", "y", "z"}
        assert reader.assets() == ["a", "line1/b"]


def test_small_chunks_become_large_ones(history: History) -> None:
    now = NOW
    for start in range(0, 6400, 50):
        history.append(commit("a", [(NOW + (start + row) * SECOND, {"x": row / 10}) for row in range(50)]), now)
        now += 700 * SECOND
        tidy(history, now)
    assert chunks(history) <= 16
    assert len(read(history, "a")) == 6400
    assert history.tally.rows == 6400
    assert history.tally.repeats == 0


def test_frames_become_chunks_when_they_are_old_or_many(history: History) -> None:
    for turn in range(20):
        history.append(commit("a", [(NOW + turn * SECOND, {"x": 0.5})]), NOW + turn * SECOND)
        tidy(history, NOW + turn * SECOND)
    assert (chunks(history), len(ids(history, "frame"))) == (0, 20)
    tidy(history, NOW + 600 * SECOND)
    assert (chunks(history), len(ids(history, "frame"))) == (1, 0)
    values = bytes(100_000)  # which take next to nothing on the disk, but not in memory
    times = array("q", range(NOW, NOW + 12_500)).tobytes()
    turns = 0
    while chunks(history) == 1:
        history.append(Commit([("b", Part(("x",), times, values))], []), NOW + 700 * SECOND)
        tidy(history, NOW + 700 * SECOND)
        turns += 1
    assert 10 < turns <= 42


def test_many_chunks_of_the_same_span(history: History) -> None:
    now, expected = NOW, []
    for turn in range(23):
        rows: Rows = [(NOW, {"first": 0.0}), (NOW + turn + 1, {"x": float(turn)}), (NOW + DAY, {"last": 0.0})]
        history.append(commit("a", rows), now)
        expected.append(rows[1])
        now += 700 * SECOND
        history.tidy(now)
    assert read(history, "a") == [(NOW, {"first": 0.0}), *expected, (NOW + DAY, {"last": 0.0})]


def test_the_budget_is_kept_while_it_is_written(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite", 8 * MB, 365 * DAY)
    history.open()
    dice, now, largest = random.Random(7), NOW, 0
    for turn in range(400):
        rows = Part(
            tuple("abcdefgh"),
            array("q", range(now, now + 500)).tobytes(),
            array("d", (dice.random() for _ in range(4000))).tobytes(),
        )
        waves = [("wave", Block(now, 1e3, {"x": array("f", dice.randbytes(200_000))}))] if turn % 4 == 0 else []
        history.append(Commit([("a", rows)], waves), now)
        now += SECOND
        largest = max(largest, history.bytes_on_disk())
        tidy(history, now)
        largest = max(largest, history.bytes_on_disk())
    assert 4 * MB < largest <= 8 * MB
    assert history.tally.deleted > 0
    kept = read(history, "a")
    assert kept[-1][0] == now - SECOND + 499
    assert len(kept) > 20_000
    assert [at for at, _ in kept] == sorted({at for at, _ in kept})
    with reading(history.path) as reader:
        assert 0 < len(list(reader.blocks("wave"))) < 50
    history.close()


def test_a_smaller_budget_gives_space_back(tmp_path: Path) -> None:
    def fill(budget: int, turns: int) -> int:
        history = History(tmp_path / "history.sqlite", budget, 365 * DAY)
        history.open()
        dice = random.Random(1)
        for turn in range(turns):
            at = NOW + turn * SECOND
            values = array("d", (dice.random() for _ in range(16_000)))
            history.append(
                Commit([("a", Part(("x", "y"), array("q", range(at, at + 8000)).tobytes(), values.tobytes()))], []), at
            )
            tidy(history, at)
        size = history.bytes_on_disk()
        history.close()
        return size

    assert fill(64 * MB, 200) > 12 * MB
    assert fill(8 * MB, 2) <= 8 * MB


def test_what_is_too_old_goes_and_its_asset_is_forgotten(history: History) -> None:
    history.append(commit("old", [(NOW, {"x": 1.0})]), NOW)
    tidy(history, NOW + DAY)
    later = NOW + 366 * DAY
    history.append(commit("new", [(later, {"x": 1.0})]), later)
    tidy(history, later + DAY)
    assert history.take_forgotten() == ["old"]
    assert history.assets() == ["new"]
    assert read(history, "old") == []
    history.append(commit("old", [(later, {"x": 2.0})]), later)
    assert read(history, "old") == [(later, {"x": 2.0})]


def test_a_commit_that_fails_leaves_nothing(history: History) -> None:
    history.append(commit("a", [(NOW, {"x": 1.0})]), NOW)
    odd = Commit([("b", Part(("y",), array("q", [NOW]).tobytes(), b""))], [("c", "no block")])  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        history.append(odd, NOW)
    assert history.assets() == ["a"]
    history.append(commit("b", [(NOW, {"y": 2.0})]), NOW)
    tidy(history, NOW + DAY)
    assert read(history, "b") == [(NOW, {"y": 2.0})]


def test_blocks_come_back(history: History) -> None:
    waves = [Block(NOW + n * SECOND, 100.0, {"x": array("f", [n, 0.5]), "y": array("f", [-n, 1e30])}) for n in range(5)]
    history.append(Commit([], [("a", block) for block in waves]), NOW)
    with reading(history.path) as reader:
        assert list(reader.blocks("a")) == waves
        assert list(reader.blocks("a", NOW + SECOND, NOW + 2 * SECOND)) == waves[1:3]
    spoil(history, "block", ids(history, "block")[0])
    with reading(history.path) as reader:
        assert list(reader.blocks("a")) == waves[1:]
        assert reader.rotten == 1


def test_rot_costs_one_chunk_and_no_more(history: History) -> None:
    now = NOW
    for start in range(0, 80, 10):
        history.append(commit("a", [(NOW + (start + row) * SECOND, {"x": 0.5}) for row in range(10)]), now)
        if start < 70:
            now += 700 * SECOND
            tidy(history, now)
    spoil(history, "chunk", ids(history, "chunk")[2])
    with reading(history.path) as reader:
        assert len(list(reader.readings("a"))) == 70
        assert reader.rotten == 1
    tidy(history, now + DAY)  # eight chunks: they are merged, the rotten one is left as it is
    assert history.tally.rotten == 1
    assert chunks(history) == 2
    assert len(read(history, "a")) == 70


def test_a_rotten_frame_costs_one_commit(history: History) -> None:
    for row in range(5):
        history.append(commit("a", [(NOW + row, {"x": 1.0})]), NOW)
    spoil(history, "frame", ids(history, "frame")[1])
    assert len(read(history, "a")) == 4
    tidy(history, NOW + DAY)
    assert len(read(history, "a")) == 4
    assert history.tally.rotten == 1


def test_a_reader_that_stops_does_not_hold_the_journal(history: History) -> None:
    for start in range(0, 20_000, 5000):
        at = NOW + start
        history.append(
            Commit([("a", Part(("x",), array("q", range(at, at + 5000)).tobytes(), bytes(8 * 5000)))], []), NOW
        )
    tidy(history, NOW + DAY)
    with reading(history.path) as reader:
        stopped = reader.readings("a")
        next(stopped)
        busy, _, _ = history._shelf.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert database.bytes_on_disk(history.path) == history.path.stat().st_size
        history.append(commit("a", [(NOW + 20_000, {"x": 1.0})]), NOW)
        assert sum(1 for _ in stopped) == 20_000


# Files that are not as they should be


def test_opening_twice_changes_nothing(history: History) -> None:
    history.append(commit("a", [(NOW, {"x": 1.0})]), NOW)
    migrations.migrate(history.path, "history")
    history.open()
    history.append(commit("a", [(NOW + 1, {"x": 2.0})]), NOW)
    assert read(history, "a") == [(NOW, {"x": 1.0}), (NOW + 1, {"x": 2.0})]


def test_migrations_run_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "sqlite_utils")
    path = tmp_path / "history.sqlite"
    migrations.migrate(path, "history")
    assert "sqlite_utils" not in sys.modules
    with reading(path) as reader:
        assert reader.assets() == []
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(DamagedError, match="not a database"):
        migrations.migrate(path, "history")


def test_a_newer_file_is_refused(history: History) -> None:
    history.close()
    db = sqlite3.connect(history.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    openers: list[Callable[[], object]] = [history.open, lambda: reading(history.path).__enter__()]
    for opener in openers:
        with pytest.raises(StoreError, match=r"newer release \(version 99; this one knows up to 1\)") as refusal:
            opener()
        assert "Update Millwright" in refusal.value.remedy
        assert not isinstance(refusal.value, DamagedError)


def test_a_failing_migration_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "some.sqlite"

    def fails(db: sqlite_utils.Database) -> None:
        db.table("half").create({"id": int})
        db.execute("SELECT * FROM nowhere")

    with pytest.raises(StoreError):
        migrations.apply(path, (migrations.history_tables, fails))
    with pytest.raises(StoreError):
        migrations.apply(path, (migrations.history_tables, fails))
    db = sqlite3.connect(path)
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    version = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    assert tables == {"asset", "layout", "frame", "chunk", "block"}
    assert version == 1


def test_a_damaged_file_is_set_aside_with_its_journal(history: History) -> None:
    history.append(commit("a", [(NOW, {"x": 1.0})]), NOW)
    history.close()
    history.path.write_bytes(b"\0rubbish" * 4096)
    with pytest.raises(DamagedError):
        history.open()
    history.path.with_name("history.sqlite-wal").write_bytes(b"journal")
    aside = history.set_aside(NOW)
    assert aside.name == f"history.sqlite.damaged-{NOW // SECOND}"
    assert database.aside(history.path) == [aside]
    assert aside.with_name(aside.name + "-wal").read_bytes() == b"journal"
    history.open()
    assert history.assets() == []
    assert history.bytes_on_disk() > 8 * 4096


def test_what_was_set_aside_makes_room_first(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite", 8 * MB, 365 * DAY)
    for age in (1, 2):
        (tmp_path / f"history.sqlite.damaged-{age}").write_bytes(bytes(5 * MB))
    history.open()
    history.append(commit("a", [(NOW, {"x": 1.0})]), NOW)
    assert [path.name for path in database.aside(history.path)] == ["history.sqlite.damaged-2"]
    assert history.bytes_on_disk() <= 8 * MB
    history.close()


def test_reading_without_a_history_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no"), reading(tmp_path / "history.sqlite"):
        pass


def test_reading_from_a_folder_that_may_not_be_written(history: History) -> None:
    history.append(commit("a", [(NOW, {"x": 1.0})]), NOW)
    history.close()
    # Root may write anywhere: what SQLite does without the right is asked for directly.
    connection = sqlite3.connect(f"{history.path.as_uri()}?immutable=1", uri=True, isolation_level=None)
    assert [tuple(one) for one in Reader(history.path, connection).readings("a")] == [(NOW, {"x": 1.0})]
    connection.close()


@pytest.mark.parametrize("budget_mb", [1, 8, 9, 64, 2048, 10_000_000])
def test_shares_of_a_budget(budget_mb: int) -> None:
    space = share(budget_mb * MB)
    assert space.budget >= 8 * MB
    assert space.room + 2 * (space.journal + space.tail) == space.budget
    assert space.room >= space.budget // 2
    assert space.merged * 8 <= space.tail
    pages = space.room // PAGE
    assert spare_pages(pages, 0, space) == 0
    assert 0 < spare_pages(pages, pages, space) < pages
