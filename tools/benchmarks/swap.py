"""A detector that changes its model under load: what is lost, what is doubled, how long it is held up.

tools/bench swap [--rate 20000] [--seconds 24] [--changes 4] [--assets 100] [--json FILE]

Readings of 3 channels with a time of their own each, over a unix socket, every one of them judged. Meanwhile the
library's name moves between two versions of the shipped model, as an update moves it. Each reading must come back as
one score with its very time.
"""

import argparse
import json
import math
import random
import select
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.events import codec
from appliance.events.schema import Kind, Score, State
from appliance.inference import models
from appliance.inference.library import Library
from tools.benchmarks import broker, process, wire
from tools.benchmarks.figures import Goal, percentile

CHANNELS, LEARNED_ROWS, PERIOD = 3, 460, 512
SILENT = 60  # rows of an asset before anything is said
START = 1_700_000_000_000_000_000
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}
START_S, PATIENCE_S, TICK_S = 60.0, 10.0, 0.001
NEAR_S = 1.5  # of a change: the detector looks for it once a second
GAP_GOAL_MS = 50.0
SCORES, STATE = "mw/v1/score/#", "mw/v1/state/detect"


@dataclass
class Heard:
    """When each score came, by the time of its reading."""

    arrivals: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    pending: list[tuple[float, bytes]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)

    def settle(self) -> None:
        """Decode what came; slow, so not while it is measured."""
        for at, payload in self.pending:
            score = codec.decode(Kind.SCORE, payload, 0)
            assert isinstance(score, Score)
            self.arrivals[score.at].append(at)
            self.versions.add(score.version)
        self.pending.clear()


class Plant:
    """Rows of all assets in turn; the number of a message is its time."""

    def __init__(self, place: Path, assets: int, rate: int) -> None:
        self.assets, self.next, self._rate = assets, 0, rate
        self._out, self._in = wire.Wire(place, "bench-load"), wire.Wire(place, "bench-scores")
        self._in.subscribe(SCORES)
        self._in.subscribe(STATE)
        self.heard = Heard()
        self._topics = [f"mw/v1/reading/bench/a{asset:03d}" for asset in range(assets)]
        self._rows = [_rows(asset) for asset in range(assets)]

    def close(self) -> None:
        self._out.close()
        self._in.close()

    def at(self, number: int) -> int:
        """Nanoseconds: as far apart as they are sent."""
        return START + number * (1_000_000_000 // self._rate)

    def send(self, count: int) -> None:
        packets = []
        for number in range(self.next, self.next + count):
            row, asset = divmod(number, self.assets)
            payload = b'{"at":%d,"values":%s}' % (self.at(number), self._rows[asset][row % PERIOD])
            packets.append(wire.publish(self._topics[asset], payload))
        self._out.send(b"".join(packets))
        self.next += count

    def collect(self) -> int:
        now, found = time.monotonic(), 0
        if not select.select([self._in], [], [], 0.0)[0]:
            return 0
        for topic, payload in self._in.receive():
            if topic == STATE:
                state = codec.decode(Kind.STATE, payload, 0) if payload else None
                self.heard.state = state.detail | _books(state) if isinstance(state, State) else {}
            else:
                self.heard.pending.append((now, payload))
                found += 1
        return found

    def paced(self, count: int, rate: int, meanwhile: Any = lambda: None) -> None:
        first, began = self.next, time.monotonic()
        while self.next < first + count:
            due = min(first + int((time.monotonic() - began) * rate) + 1, first + count) - self.next
            if due > 0:
                self.send(due)
            self.collect()
            meanwhile()
            time.sleep(TICK_S)

    def quiet(self, wanted: int) -> None:
        """Until so many scores came, or none any more."""
        last = time.monotonic()
        while len(self.heard.pending) < wanted and time.monotonic() - last < PATIENCE_S:
            if self.collect():
                last = time.monotonic()
            time.sleep(TICK_S)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        result = _measured(Path(name), options)
    for line in _lines(result):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if not (result["lost"] or result["doubled"]) else 1


def _measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    library, versions = _library(folder)
    with broker.running(folder) as place:
        configuration = _configured(folder, place.socket, versions[0][0])
        argv = [sys.executable, "-m", "appliance", "--config", str(configuration), "run", "detect"]
        with process.running(argv, folder / "detect.log", ENVIRONMENT) as child:
            place.wait_for_subscription("mw/v1/reading/#", START_S, child)
            with closing(Plant(place.socket, options.assets, options.rate)) as plant:
                plant.paced(LEARNED_ROWS * options.assets, min(options.rate, 5000))
                plant.quiet((LEARNED_ROWS - SILENT) * options.assets)
                plant.heard.settle()
                return _run(plant, library, versions, options)


def _run(
    plant: Plant, library: Library, versions: list[tuple[str, str]], options: argparse.Namespace
) -> dict[str, Any]:
    first, count = plant.next, round(options.rate * options.seconds)
    moments = [options.seconds * (number + 1) / (options.changes + 1) for number in range(options.changes)]
    changed: list[float] = []
    began = time.monotonic()

    def meanwhile() -> None:
        if len(changed) < len(moments) and time.monotonic() - began >= moments[len(changed)]:
            name, version = versions[(len(changed) + 1) % 2]
            library.use(library.find(f"{name}@{version}"))
            changed.append(time.monotonic())

    plant.paced(count, options.rate, meanwhile)
    took = time.monotonic() - began
    plant.quiet(count)
    plant.heard.settle()
    plant.collect()
    return _result(plant, range(first, first + count), changed, took)


def _result(plant: Plant, numbers: range, changed: list[float], took: float) -> dict[str, Any]:
    arrivals = [plant.heard.arrivals.get(plant.at(number), []) for number in numbers]
    steady, near = _pauses(plant, numbers, changed)
    state = plant.heard.state
    return {
        "sent": len(numbers),
        "rate": round(len(numbers) / took),
        "lost": sum(not one for one in arrivals),
        "doubled": sum(len(one) > 1 for one in arrivals),
        "changes": state.get("choice", {}).get("changes", 0),
        "versions": sorted(plant.heard.versions),
        "held_up_ms": state.get("choice", {}).get("gap_ms"),
        "pause_ms": {"p99_9": _ms(steady, 0.999), "longest": _ms(steady, 1.0), "longest_at_a_change": _ms(near, 1.0)},
        "dropped": state.get("dropped", {}),
        "assets": plant.assets,
    }


def _pauses(plant: Plant, numbers: range, changed: list[float]) -> tuple[list[float], list[float]]:
    """Between two scores of one asset, in seconds: elsewhere, and at the changes."""
    steady: list[float] = []
    near: list[float] = []
    last: dict[int, float] = {}
    for number in numbers:
        asset = number % plant.assets
        for at in plant.heard.arrivals.get(plant.at(number), [])[:1]:
            if asset in last:
                (near if any(0 <= at - one < NEAR_S for one in changed) else steady).append(at - last[asset])
            last[asset] = at
    return steady, near


def _ms(pauses: list[float], share: float) -> float | None:
    return round(1e3 * percentile(pauses, share), 1) if pauses else None


def _lines(result: dict[str, Any]) -> list[str]:
    pause = result["pause_ms"]
    held = result["held_up_ms"]
    return [
        f"{result['sent']:,} readings of {result['assets']} assets, {result['rate']:,} a second, "
        f"{result['changes']} changes of the model ({', '.join(result['versions'])})",
        f"lost {result['lost']}, doubled {result['doubled']}, dropped {result['dropped'] or 'none'}",
        f"between two scores of an asset, ms: 99.9 of 100 within {pause['p99_9']}, longest {pause['longest']}; "
        f"longest at a change {pause['longest_at_a_change']}",
        Goal("judging held up by the last change, ms", GAP_GOAL_MS, held, at_most=True).line(),
        Goal("lost or doubled readings", 0, result["lost"] + result["doubled"], at_most=True).line(),
    ]


def _library(folder: Path) -> tuple[Library, list[tuple[str, str]]]:
    """Two versions of the shipped model, the first one in use."""
    library = Library(folder / "state" / "models")
    versions: list[tuple[str, str]] = []
    for version in ("101.0.0", "102.0.0"):
        draft = folder / f"draft-{version}"
        shutil.copytree(models.shipped(), draft)
        card = draft / models.CARD
        lines = card.read_text().splitlines()
        card.chmod(0o600)
        lines = [f'version = "{version}"' if line.startswith("version =") else line for line in lines]
        card.write_text("\n".join(lines) + "\n")
        entry, _ = library.add(draft)
        versions.append((entry.card.name, version))
    return library, versions


def _configured(folder: Path, socket: Path, name: str) -> Path:
    file = folder / "millwright.toml"
    file.write_text(
        f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n[bus]\nurl = "unix:{socket}"\n'
        f'[detect]\nhop = 1\nmodel = "{name}"\ndevice = "CPU"\n[log]\nlevel = "warning"\n'
    )
    return file


def _rows(asset: int) -> list[bytes]:
    dice = random.Random(asset)
    rows = []
    for row in range(PERIOD):
        values = {
            f"c{channel}": round(
                20 * (channel + 1) + math.sin(math.tau * row * (channel + 3) / PERIOD) + dice.gauss(0, 0.1), 3
            )
            for channel in range(CHANNELS)
        }
        rows.append(json.dumps(values, separators=(",", ":")).encode())
    return rows


def _books(state: State) -> dict[str, Any]:
    return {"received": state.received, "processed": state.processed, "dropped": dict(state.dropped)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/bench swap", description=__doc__)
    parser.add_argument("--rate", type=int, default=20_000, help="readings a second")
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument("--changes", type=int, default=4)
    parser.add_argument("--assets", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
