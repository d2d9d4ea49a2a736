"""Sending elsewhere: our durable outbox beside mosquitto's own bridge with a persistent session, in one run.

Four things are measured. `line down`: readings through gate and outbox (SQLite, synchronous = FULL) alone, as during an
outage: messages a second until the last one is on the disk. `outbox`: through gate, outbox and MQTT channel to a broker
and a receiver that writes each message down (FULL, too) before it confirms it: from the first one taken in to the last
one confirmed. `bridge`: a publisher, a broker with persistence that bridges (QoS 1, persistent session) to another
broker, and a reader there, which writes nothing down. `killed`: outbox and bridge with the far broker killed in the
middle, three times, and started again: what is lost, what comes twice.
"""

import argparse
import asyncio
import getpass
import json
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from appliance import forwarding
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.channels import Configured
from appliance.channels.mqtt import Settings
from appliance.config.document import Document
from appliance.config.places import Paths
from appliance.config.schema import Config
from appliance.config.secrets import VaultName
from appliance.events import topics
from appliance.events.schema import Kind
from appliance.services.forward import PART, PARTS
from appliance.services.outlet import Outlet
from tools.benchmarks.figures import Goal, median

COUNT, KILLED_COUNT, ROUNDS = 200_000, 60_000, 3
BATCH = 4096
ASSETS, CHANNELS = 100, 16
PREFIX = "bench/box"
KILLS = 3
QUIET_S, PATIENCE_S = 8.0, 240.0
NOW = 1_790_000_000_000_000_000
DOWN, OURS, PACKED, BRIDGE = "line down", "outbox", "outbox, packed", "bridge"
PACK = 100


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/bench forward", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each contestant (%(default)s)")
    parser.add_argument("--count", type=int, default=COUNT, help="messages a round (%(default)s)")
    options = parser.parse_args(argv)
    rates: dict[str, list[float]] = {name: [] for name in PLAYS}
    cpu: dict[str, list[float]] = {DOWN: [], OURS: [], PACKED: []}
    for number in range(options.rounds):
        for name, play in PLAYS.items():
            told = _played(play, options.count, kills=0)
            rates[name].append(options.count / told["seconds"])
            if name in cpu:
                cpu[name].append(told["cpu_us"])
            print(f"round {number + 1}  {name:<14} {rates[name][-1]:9,.0f} messages/s  {_losses(told)}", flush=True)
    killed = {name: _played(play, KILLED_COUNT, KILLS) for name, play in PLAYS.items() if name != DOWN}
    goals = _goals(rates, killed)
    _print(rates, cpu, killed, goals)
    if options.json:
        plain = {"rates": rates, "cpu_us": cpu, "killed": killed, "goals": [goal.plain() for goal in goals]}
        options.json.write_text(json.dumps(plain, indent=2) + "\n")
    return 0 if all(goal.met for goal in goals) else 1


def _losses(told: dict[str, Any]) -> str:
    return f"lost {told['lost']}  doubled {told['doubled']}"


def _goals(rates: dict[str, list[float]], killed: dict[str, dict[str, Any]]) -> list[Goal]:
    return [
        Goal("taken in while the line is down, messages/s", 40_000, median(rates[DOWN])),
        Goal("durable outbox, messages/s", 40_000, median(rates[OURS])),
        Goal("the same, 100 in a message", 40_000, median(rates[PACKED])),
        Goal("outbox, packed, to bridge", 1, median(rates[PACKED]) / median(rates[BRIDGE])),
        Goal("broker killed three times: lost by the outbox", 0, killed[OURS]["lost"], at_most=True),
        Goal("broker killed three times: doubled by the outbox", 0, killed[OURS]["doubled"], at_most=True),
    ]


def _print(
    rates: dict[str, list[float]], cpu: dict[str, list[float]], killed: dict[str, dict[str, Any]], goals: Sequence[Goal]
) -> None:
    print(f"\n{'messages a second':<22}{'median':>10}{'least':>10}{'most':>10}")
    for name, rounds in rates.items():
        print(f"{name:<22}{median(rounds):10,.0f}{min(rounds):10,.0f}{max(rounds):10,.0f}")
    for name, used in cpu.items():
        print(f"CPU of the sending process, {name}: {median(used):.1f} us a message")
    head = f"broker killed {KILLS} times"
    print(f"\n{head:<22}{'lost':>10}{'doubled':>10}{'seconds':>10}   of {KILLED_COUNT:,}")
    for name, told in killed.items():
        print(f"{name:<22}{told['lost']:10,}{told['doubled']:10,}{told['seconds']:10.1f}")
    print()
    for goal in goals:
        print(goal.line())


# Playing

Told = dict[str, Any]


def _played(play: Any, count: int, kills: int) -> Told:
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as folder:
        told: Told = uvloop.run(play(Path(folder), count, kills))
    return told


async def _play_down(folder: Path, count: int, _kills: int) -> Told:
    far = Far(folder)  # which nobody starts
    async with _outlet(folder, far, 1, standing="waiting") as outlet:
        messages = _messages(count)
        began, used = time.monotonic(), _cpu_s()
        await _take_in(outlet, messages)
        seconds, cpu_us = time.monotonic() - began, 1e6 * (_cpu_s() - used) / count
        kept = outlet.post.books.waiting
    return {"lost": count - kept, "doubled": 0, "seconds": seconds, "cpu_us": cpu_us}


async def _play_ours(folder: Path, count: int, kills: int, pack: int = 1) -> Told:
    far = Far(folder)
    async with far, _receiving(folder, far) as store, _outlet(folder, far, pack) as outlet:
        messages = _messages(count)
        began, used = time.monotonic(), _cpu_s()
        killing = asyncio.create_task(far.die_now_and_then(kills, lambda: outlet.post.books.sent / count))
        await _take_in(outlet, messages)
        await _until(lambda: outlet.post.books.sent >= count)
        seconds, cpu_us = time.monotonic() - began, 1e6 * (_cpu_s() - used) / count
        await killing
    return {**_counted(_received(store), count), "seconds": seconds, "cpu_us": cpu_us}


async def _take_in(outlet: Outlet, messages: Sequence[Message]) -> None:
    """As the service does."""
    writing = deque[Any]()
    for start in range(0, len(messages), PART):
        writing.append(outlet.take(messages[start : start + PART], NOW))
        await (writing.popleft() if len(writing) == PARTS else asyncio.sleep(0))
    await asyncio.gather(*writing)


async def _play_packed(folder: Path, count: int, kills: int) -> Told:
    return await _play_ours(folder, count, kills, PACK)


async def _play_bridge(folder: Path, count: int, kills: int) -> Told:
    far = Far(folder)
    seen: Counter[int] = Counter()
    async with (
        far,
        _bridging(folder, far) as near,
        MqttBus(far.url, client_id="reader") as reader,
        reader.subscribe(f"{PREFIX}/#", qos=1) as batches,
    ):
        await reader.wait_connected(PATIENCE_S)
        hearing = asyncio.create_task(_hear(batches, seen))
        messages = [Message(f"{PREFIX}/reading/a{n % ASSETS:02d}", _payload(n), 1) for n in range(count)]
        began = time.monotonic()
        killing = asyncio.create_task(far.die_now_and_then(kills, lambda: len(seen) / count))
        await _pour(near, messages)
        last = await _until_quiet(seen, count, killing)
        hearing.cancel()
    return {**_counted(seen, count), "seconds": last - began}


PLAYS = {DOWN: _play_down, OURS: _play_ours, PACKED: _play_packed, BRIDGE: _play_bridge}


async def _until_quiet(seen: Counter[int], count: int, killing: "asyncio.Task[None]") -> float:
    """When the last message came."""
    known, last = -1, time.monotonic()
    while len(seen) < count or not killing.done():
        if seen.total() != known:
            known, last = seen.total(), time.monotonic()
        elif time.monotonic() - last > QUIET_S:
            killing.cancel()
            return last
        await asyncio.sleep(0.01)
    return time.monotonic()


async def _hear(batches: AsyncIterator[list[Message]], seen: Counter[int]) -> None:
    async for batch in batches:
        seen.update(int(message.payload[5 : message.payload.index(b".")]) for message in batch)


async def _pour(near: str, messages: Sequence[Message]) -> None:
    async with MqttBus(near) as bus:
        await bus.wait_connected(PATIENCE_S)
        for start in range(0, len(messages), BATCH):
            bus.publish_many(messages[start : start + BATCH])
            await bus.drain()


def _counted(seen: Counter[int], count: int) -> Told:
    return {"lost": sum(number not in seen for number in range(count)), "doubled": seen.total() - len(seen)}


def _received(store: Path) -> Counter[int]:
    import sqlite3

    with sqlite3.connect(store) as db:
        return Counter(
            int(json.loads(payload)["values"]["n"]) for (payload,) in db.execute("SELECT payload FROM event")
        )


def _payload(number: int) -> bytes:
    """About 200 bytes of JSON, as devices send them."""
    values = {"n": float(number)} | {
        f"c{channel:02d}": round(20 + channel + number % 7 / 8, 3) for channel in range(CHANNELS)
    }
    return json.dumps(values, separators=(",", ":")).encode()


def _messages(count: int) -> list[Message]:
    return [Message(topics.topic(Kind.READING, f"bench/a{n % ASSETS:02d}"), _payload(n), 1) for n in range(count)]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# The parts


class Far:
    """The broker elsewhere: persistence as Millwright's own broker has it, on loopback, since a bridge needs TCP."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._command = _configured(folder / "far", f"listener {self.port} 127.0.0.1\n")
        self._child: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "Far":
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end(signal.SIGTERM)

    async def die_now_and_then(self, times: int, progress: Any) -> None:
        for number in range(times):
            share = (number + 1) / (times + 1)
            await _until(lambda share=share: progress() >= share)  # type: ignore[misc]
            await self._end(signal.SIGKILL)
            await asyncio.sleep(0.3)
            await self._start()

    async def _start(self) -> None:
        self._child = await _started(self._command)
        await _accepting(self.port)

    async def _end(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.send_signal(number)
        await self._child.wait()


@asynccontextmanager
async def _bridging(folder: Path, far: Far) -> AsyncIterator[str]:
    port = _free_port()
    lines = (
        f"listener {port} 127.0.0.1\nconnection far\naddress 127.0.0.1:{far.port}\ntopic # out 1\ncleansession false\n"
        "notifications false\nbridge_protocol_version mqttv311\nrestart_timeout 1\n"
    )
    child = await _started(_configured(folder / "near", lines))
    try:
        await _accepting(port)
        await asyncio.sleep(1.0)  # the bridge connects
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        child.terminate()
        await child.wait()


@asynccontextmanager
async def _receiving(folder: Path, far: Far) -> AsyncIterator[Path]:
    store = folder / "received.sqlite"
    child = await _started([sys.executable, "-m", "tools.reception", far.url, PREFIX, "--store", str(store)])
    try:
        yield store
    finally:
        child.terminate()
        await child.wait()


@asynccontextmanager
async def _outlet(folder: Path, far: Far, pack: int, standing: str = "open") -> AsyncIterator[Outlet]:
    settings = Settings(
        url=far.url, prefix=PREFIX, pack=pack, confirm="receiver", kinds=["reading"], budget_mb=4096, catch_up_per_s=0
    )
    config, document = Config(paths=Paths(folder, folder)), Document("bench", "")
    outlet = forwarding.outlet(
        Configured("mqtt", "bench", settings, ("forward",)), config, document, forwarding.tools(_no_vault)
    )
    task = asyncio.create_task(outlet.run())
    try:
        await _until(lambda: outlet.standing == standing)
        yield outlet
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _no_vault(name: VaultName) -> bytes:
    raise KeyError(name.vault)


def _configured(folder: Path, lines: str) -> list[str]:
    folder.mkdir()
    executable = shutil.which("mosquitto")
    if executable is None:
        sys.exit("mosquitto is not installed (apt install mosquitto)")
    (folder / "mosquitto.conf").write_text(
        f"user {getpass.getuser()}\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        "autosave_interval 5\nmax_queued_messages 1000000\nmax_queued_bytes 0\nmax_inflight_messages 4096\n"
        f"max_inflight_bytes 0\nset_tcp_nodelay true\nlog_type error\n{lines}"
    )
    return [executable, "-c", str(folder / "mosquitto.conf")]


async def _started(command: list[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0.005)


async def _accepting(port: int) -> None:
    for _ in range(1000):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return
    raise TimeoutError(f"mosquitto does not answer on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
