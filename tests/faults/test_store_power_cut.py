"""The stores when their process is killed, and when the power goes: what was committed, or synced, is there. Once."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401  # migrations then run in this process, which is quicker

import appliance
from appliance.store.alarms import Alarms
from appliance.store.history import History
from appliance.store.reader import reading
from tests.faults import store_writer
from tests.faults.store_writer import ASSETS, BUDGET, NOW, RETENTION, ROWS, alarm, commit

KILLS = int(os.environ.get("MILLWRIGHT_KILLS", "50"))
SEED = int(os.environ.get("MILLWRIGHT_SEED", "1"))
LIFE = 25  # kills of one set of files: each time all of their content is compared
PATIENCE_S = 60


def run_until_killed(folder: Path, turn: int, lines: int) -> tuple[int, int]:
    """The last that were said to be in the history and among the alarms."""
    command = [sys.executable, store_writer.__file__, str(folder), str(turn)]
    here = {**os.environ, "PYTHONPATH": str(Path(appliance.__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here)
    assert process.stdout is not None
    said = {"history": turn - 1, "alarm": -1}
    for count, line in enumerate(process.stdout):
        kind, number = line.split()
        said[kind] = int(number)
        if count == lines:
            process.send_signal(signal.SIGKILL)  # while it does whatever it does now; the pipe is read to its end
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    process.stdout.close()
    return said["history"], said["alarm"]


def recorded(folder: Path, asset: str) -> Iterator[tuple[int, dict[str, float]]]:
    with reading(folder / "history.sqlite") as reader:
        for one in reader.readings(asset):
            yield one.at, one.values
        assert reader.rotten == 0


def turns_of(folder: Path) -> int:
    """How many turns the history holds, which must be all of the first so many, whole, in all assets, once."""
    found: Counter[int] = Counter()
    for asset in ASSETS:
        turns = 0
        for count, (at, values) in enumerate(recorded(folder, asset)):
            assert (at, values) == (NOW + count, {"x": (count // ROWS) / 10, "y": 0.5})
            turns = (count + 1) / ROWS
        found[turns] += 1
    ((turns, assets),) = found.items()
    assert (turns, assets) == (int(turns), len(ASSETS))
    return int(turns)


def check_integrity(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("life", range(-(-KILLS // LIFE)))
def test_killed_at_any_moment(tmp_path: Path, life: int) -> None:
    """Nothing that was said to be committed is missing or there twice; of what was not said there is all or nothing."""
    dice = random.Random(f"{SEED} {life}")
    with (
        closing(Alarms(tmp_path / "alarms.sqlite")) as alarms,
        closing(History(tmp_path / "history.sqlite", BUDGET, RETENTION)) as history,
    ):
        history.open()
        alarms.count()
    turn, merged = 0, 0
    for _ in range(LIFE):
        said_history, said_alarm = run_until_killed(tmp_path, turn, dice.randrange(50))
        for path in tmp_path.glob("*.sqlite"):
            check_integrity(path)
        kept = turns_of(tmp_path)
        assert kept - (said_history + 1) in (0, 1)
        with closing(Alarms(tmp_path / "alarms.sqlite")) as alarms:
            rows = [change.alarm.at - NOW for change in alarms.changes()]
            assert rows == list(range(len(rows)))
            assert said_alarm == -1 or len(rows) - (said_alarm + 1) in (0, 1)
            alarms.record([alarm(number) for number in range(len(rows))])  # as the broker delivers them again
            assert alarms.count() == len(rows)
            alarms.record([alarm(number) for number in range(len(rows), (kept + 3) // 4)])
        turn = kept
        with closing(sqlite3.connect(tmp_path / "history.sqlite")) as db:
            merged = max(merged, db.execute("SELECT MAX(rows) FROM chunk").fetchone()[0] or 0)
    assert merged > 2000  # frames were folded and chunks merged while it was killed
    assert not list(tmp_path.glob("*.damaged*"))


@pytest.mark.parametrize("tail", ["nothing", "zeros", "rubbish"])
def test_a_journal_torn_at_any_byte_costs_the_last_commits_and_no_other(tmp_path: Path, tail: str) -> None:
    """Without a sync the system writes a journal when it likes. After one it is on the disk up to there."""
    dice, whole = random.Random(f"{SEED} {tail}"), tmp_path / "whole"
    history = History(whole / "history.sqlite", 64 << 20, RETENTION)
    history.open()
    journal, ends = whole / "history.sqlite-wal", [0]
    while ends[-1] < 1 << 19:
        history.append(commit(len(ends) - 1), NOW)
        if len(ends) % 40 == 0:
            history.tidy(NOW + 601_000_000_000 * len(ends))
        ends.append(journal.stat().st_size)
    for cut in [0, 1, 31, 32, *(dice.randrange(ends[-1]) for _ in range(12)), ends[-1]]:
        torn = tmp_path / f"torn-{cut}"
        torn.mkdir()
        shutil.copy(whole / "history.sqlite", torn)
        lost = ends[-1] - cut
        rest = {"nothing": b"", "zeros": bytes(lost), "rubbish": dice.randbytes(lost)}[tail]
        (torn / journal.name).write_bytes(journal.read_bytes()[:cut] + rest)
        with closing(History(torn / "history.sqlite", 64 << 20, RETENTION)) as survivor:
            survivor.open()
            survivor.sync()
            kept = turns_of(torn) if survivor.assets() else 0
            survivor.append(commit(kept), NOW)
            assert turns_of(torn) == kept + 1
        # A fold may come before a commit's end: then the commit is whole although the file goes on.
        assert kept >= max(turn for turn, end in enumerate(ends) if end <= cut)
        assert kept <= min((turn for turn, end in enumerate(ends) if end >= cut), default=len(ends))
        shutil.rmtree(torn)
    history.close()


def test_alarms_wait_for_the_disk_and_readings_do_not(tmp_path: Path) -> None:
    with (
        closing(Alarms(tmp_path / "alarms.sqlite")) as alarms,
        closing(History(tmp_path / "history.sqlite", BUDGET, RETENTION)) as history,
    ):
        alarms.record([alarm(0)])
        history.open()
        for connection, level in ((alarms._connection(), 2), (history._shelf.connection, 1)):
            assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
