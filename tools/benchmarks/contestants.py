"""Who takes part in the pipeline benchmark: each one process on a private broker of its own, taught and aligned."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2

from appliance.inference import models
from tools.benchmarks import broker, load, process
from tools.benchmarks.peers import node_red

START_S = 60.0
LEARNED_ROWS, MORE_ROWS, MOST_ROWS = 464, 64, 1200  # of every asset, until our detector calls people
FILLED_ROWS = 80  # enough for a window of 64
TEACH_RATE = 10_000
# Where Python may keep no bytecode it compiles at each start, and what that takes in memory stays taken.
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}


@dataclass
class Contestant:
    """A running one. `flat_count` messages keep it busy for a few seconds."""

    name: str
    child: subprocess.Popen[bytes]
    sender: load.Load
    flat_count: int
    flat_us: list[float] = field(default_factory=list)
    flat_rate: list[float] = field(default_factory=list)
    paced_us: list[float] = field(default_factory=list)
    lost: int = 0
    highest: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    learned_mb: float = 0.0  # when learning was over
    rss_mb: float = 0.0  # at the end, after all load

    def measured(self, action: Callable[[], load.Run]) -> tuple[float, load.Run]:
        """CPU microseconds of its processes for each message it really dealt with. RuntimeError when it has ended."""
        self.sender.lead_in()
        before = process.cpu_us(self.child.pid)
        run = action()
        spent = process.cpu_us(self.child.pid) - before
        if self.child.poll() is not None:
            raise RuntimeError(f"{self.name} ended with code {self.child.returncode}")
        self.lost += run.sent - run.judged
        return spent / max(run.judged, 1), run


@contextmanager
def ours(folder: Path, pool: load.Pool) -> Iterator[Contestant]:
    """The detect service alone, as on the appliance, over a unix socket; learning is over when this is entered."""
    with _placed("ours", folder, pool, 200_000, lambda place: appliance(folder, place, "run", "detect")) as contestant:
        rows = _teach_until_alarming(contestant.sender)
        print(f"  ours is alarming after {rows} rows of each asset", file=sys.stderr)
        contestant.sender.align()
        contestant.learned_mb = process.rss_mb(contestant.child.pid)
        yield contestant


@contextmanager
def naive_script(folder: Path, pool: load.Pool) -> Iterator[Contestant]:
    """The same model, over a unix socket."""
    model = models.load(models.shipped()).model

    def command(place: broker.Broker) -> list[str | Path]:
        return [sys.executable, Path(__file__).parent / "peers" / "naive.py", place.socket, model]

    with _placed("naive", folder, pool, 30_000, command) as contestant:
        contestant.sender.teach(FILLED_ROWS, TEACH_RATE // 2)
        contestant.sender.align()
        yield contestant


@contextmanager
def node_red_flow(folder: Path, pool: load.Pool) -> Iterator[Contestant]:
    """No model at all; over loopback TCP, which is what its MQTT node offers."""
    with _placed("node-red", folder, pool, 50_000, lambda place: node_red.command(folder, place.port)) as contestant:
        contestant.sender.teach(FILLED_ROWS, TEACH_RATE // 2)
        contestant.sender.align()
        yield contestant


def compile_all(folder: Path) -> None:
    """Let Python write the bytecode of all that takes part, as it does at anybody's second start."""
    with broker.running(folder) as place:
        for argv in (
            [*appliance(folder, place, "run", "--demo", "--seconds", "2")],
            [sys.executable, "-c", "import numpy, openvino, paho.mqtt.client"],
        ):
            environment = {**os.environ, **ENVIRONMENT}
            subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=120, check=True
            )


def appliance(folder: Path, place: broker.Broker, *words: str) -> list[str | Path]:
    """Our command with a configuration of its own in `folder`, on the given broker."""
    configuration = folder / "millwright.toml"
    configuration.write_text(
        f'[paths]\nstate = "{folder}/state"\nrun = "{folder}/run"\n'
        f'[bus]\nurl = "unix:{place.socket}"\n[detect]\nhop = {load.HOP}\n[log]\nlevel = "warning"\n'
    )
    return [sys.executable, "-m", "appliance", "--config", configuration, *words]


@contextmanager
def _placed(
    name: str, folder: Path, pool: load.Pool, flat_count: int, command: Callable[[broker.Broker], list[str | Path]]
) -> Iterator[Contestant]:
    log = folder / f"{name}.log"
    with broker.running(folder) as place:
        argv = command(place)
        with process.running(argv, log, ENVIRONMENT) as child, closing(load.Load(place.socket, pool)) as sender:
            try:
                place.wait_for_subscription("mw/v1/reading/", START_S, child)
                yield Contestant(name, child, sender, flat_count)
            except Exception:
                print(f"--- the end of what {name} said:\n{log.read_text()[-2000:]}", file=sys.stderr)
                raise


def _teach_until_alarming(sender: load.Load) -> int:
    rows = LEARNED_ROWS
    sender.teach(rows, TEACH_RATE)
    while (stage := _stage(sender.last_score)) != "alarming":
        if rows > MOST_ROWS:
            raise RuntimeError(f"after {rows} rows the detector is still at '{stage}'")
        sender.teach(MORE_ROWS, TEACH_RATE)
        rows += MORE_ROWS
    return rows


def _stage(score: bytes) -> str:
    found: Any = cbor2.loads(score) if score else {}
    return str(found.get("stage", "no score at all"))
