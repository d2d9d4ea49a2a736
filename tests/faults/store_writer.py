"""Writes to the stores until it is killed: `store_writer.py FOLDER TURN`. Says what is committed, line by line."""

import sys
from array import array
from pathlib import Path

from appliance.events.schema import Alarm, AlarmState, Severity
from appliance.store.alarms import Alarms, Change
from appliance.store.frame import Part
from appliance.store.history import Commit, History

BUDGET, RETENTION = 8 << 20, 365 * 86_400_000_000_000
NOW = 1_700_000_000_000_000_000
ROWS = 40  # a commit
ASSETS = tuple(f"line1/{number}" for number in range(12))  # so many that to fold them takes a while


def commit(turn: int) -> Commit:
    """Readings number `turn * ROWS` and following of each asset; compressible, so that the budget holds all of them."""
    times = array("q", range(NOW + turn * ROWS, NOW + (turn + 1) * ROWS)).tobytes()
    return Commit(
        [(asset, Part(("x", "y"), times, array("d", [turn / 10, 0.5] * ROWS).tobytes())) for asset in ASSETS], []
    )


def alarm(turn: int) -> Change:
    state = AlarmState.NORMAL if turn % 2 else AlarmState.UNACKNOWLEDGED
    return Change("a", Alarm(f"alarm-{turn // 2}", NOW + turn, NOW, state, Severity.ALARM, "x", 2.0, 1.0))


def write(folder: Path, turn: int) -> None:
    """Until killed: commit, then say so. All steps of keeping order come often: frames are soon too old."""
    history, alarms = History(folder / "history.sqlite", BUDGET, RETENTION), Alarms(folder / "alarms.sqlite")
    history.open()
    while True:
        history.append(commit(turn), NOW + turn)
        print(f"history {turn}", flush=True)
        if turn % 4 == 0:  # they wait for the disk: most kills should come elsewhere
            alarms.record([alarm(turn // 4), alarm(turn // 4)])
            print(f"alarm {turn // 4}", flush=True)
        for step in range(turn % 5):
            print(f"tidy {step}", flush=True)
            history.tidy(NOW + turn + step * 601_000_000_000)
        turn += 1


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
