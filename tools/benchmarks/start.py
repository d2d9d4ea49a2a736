"""How soon the first reading is taken in after a start, and how soon Ctrl-C is obeyed; Node-RED beside us.

tools/bench start [--runs 5] [--json FILE]

Each starts at its second start or later, when databases and bytecode are there: ours with its own broker and the
simulated pump, until the reading is in the record; Node-RED on a broker that runs already, until its flow listens.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.benchmarks import broker, process
from tools.benchmarks.figures import Goal, median
from tools.benchmarks.peers import node_red

PATIENCE_S, TICK_S = 60.0, 0.005
FIRST_READING_S, STOP_S = 3.0, 2.0  # goals
HEARD = b"demo/pump: first heard of"

Times = tuple[float, float]  # s: until it works, until it has ended


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    found: dict[str, list[Times]] = {"ours": []}
    with tempfile.TemporaryDirectory(prefix="mw-") as name:
        folder = Path(name)
        ours(folder)  # the first start makes the databases
        found["ours"] = [ours(folder) for _ in range(options.runs)]
        if missing := node_red.available():
            print(f"Node-RED is left out: {missing}", file=sys.stderr)
        else:
            found["node-red"] = [theirs(folder) for _ in range(options.runs + 1)][1:]
    medians = {
        who: (median([one[0] for one in times]), median([one[1] for one in times])) for who, times in found.items()
    }
    goals = [
        Goal("seconds to the first reading", FIRST_READING_S, medians["ours"][0], at_most=True),
        Goal("seconds to the end after Ctrl-C", STOP_S, medians["ours"][1], at_most=True),
    ]
    for who, (started, stopped) in medians.items():
        print(f"{who:<10} works after {started:.2f} s, has ended after {stopped:.2f} s")
    if "node-red" in medians:
        print(f"ours to node-red: {medians['ours'][0] / medians['node-red'][0]:.2f} x to work")
    print(*(goal.line() for goal in goals), sep="\n")
    if options.json:
        content = {"seconds": found, "medians": medians, "goals": [goal.plain() for goal in goals]}
        options.json.write_text(json.dumps(content, indent=1))
    return 0


def ours(folder: Path) -> Times:
    home = {"XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    with _started([sys.executable, "-m", "appliance", "run", "--demo"], folder / "ours.log", home) as child:
        return _timed(child, lambda: HEARD in (folder / "ours.log").read_bytes())


def theirs(folder: Path) -> Times:
    with tempfile.TemporaryDirectory(prefix="mw-") as name:
        home = Path(name)
        with (
            broker.running(home) as place,
            _started(node_red.command(home, place.port), home / "node-red.log", {}) as child,
        ):
            return _timed(child, lambda: "mw/v1/reading/" in place.log.read_text())


@contextmanager
def _started(argv: Sequence[str | Path], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    log.unlink(missing_ok=True)
    with process.running(argv, log, {**environment, "PYTHONDONTWRITEBYTECODE": ""}) as child:
        yield child


def _timed(child: subprocess.Popen[bytes], works: Callable[[], bool]) -> Times:
    began = time.perf_counter()
    while not works():
        if child.poll() is not None or time.perf_counter() - began > PATIENCE_S:
            raise RuntimeError(f"it does not work {PATIENCE_S:g} s after its start")
        time.sleep(TICK_S)
    started = time.perf_counter() - began
    os.killpg(child.pid, signal.SIGINT)
    began = time.perf_counter()
    child.wait(PATIENCE_S)
    return started, time.perf_counter() - began


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
