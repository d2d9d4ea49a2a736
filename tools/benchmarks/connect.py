"""What devices cost: 2,000 found over MQTT and 200 Modbus slaves on one box, and whom a dead slave delays.

tools/bench connect [--seconds N] [--json FILE]

One `millwright run ingest` beside a mosquitto and a program that plays all slaves, each at its own address. Devices
are of Zigbee2MQTT, with four values; each reports once in ten seconds. Slaves have twelve registers in two blocks, read
once a second. CPU is user and system time of ingest alone, as a share of one core; memory is its resident set.

A slave that is dead takes the connection and never answers. Beside others at an address of its own, and behind the
gateway that others are behind: what they lose is the share of their readings that do not come, against the same with
all alive. There the clock runs ten times as fast: interval, timeouts and rests are a tenth.
"""

import argparse
import asyncio
import json
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from appliance.bus.mqtt import MqttBus
from appliance.connectors import modbus
from appliance.connectors.port import Connector
from appliance.events.schema import Reading
from tools.benchmarks import broker, contestants, process
from tools.benchmarks.figures import Goal

DEVICES, PERIOD_S = 2000, 10.0
SLAVES = 200
WARM_S, SPAN_S = 15.0, 20.0
FASTER = 10.0
SHARED = 10  # slaves behind one gateway
POINTS = [
    *({"name": f"input{number}", "table": "input", "address": 2 * number, "type": "float32"} for number in range(4)),
    *({"name": f"holding{number}", "table": "holding", "address": 40 + number} for number in range(4)),
]


def main() -> int:
    args = _arguments()
    if args.slaves:
        return asyncio.run(_play_slaves(args.slaves))
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        found = asyncio.run(_box(Path(name), args.seconds))
    found |= asyncio.run(_delays(args.seconds))
    goals = [
        Goal("readings others lose by a dead slave beside them, %", 1.0, found["lost_beside_percent"], at_most=True),
        Goal("readings others lose by one behind their gateway, %", 1.0, found["lost_behind_percent"], at_most=True),
    ]
    for key, value in found.items():
        print(f"{key:<40} {value:>12.4g}")
    print("\n".join(goal.line() for goal in goals))
    if args.json:
        told = {"benchmark": "connect", "figures": found, "goals": [goal.plain() for goal in goals]}
        args.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


# 2,000 devices and 200 slaves


async def _box(folder: Path, seconds: float) -> dict[str, float]:
    port = _free_port()
    slaves = [
        {"asset": f"line1/m{number}", "host": _address(number), "port": port, "points": POINTS}
        for number in range(SLAVES)
    ]
    with (
        broker.running(folder) as place,
        process.running([sys.executable, "-m", "tools.benchmarks.connect", "--slaves", str(port)], folder / "slaves"),
    ):
        words = contestants.appliance(folder, place, "run", "ingest")
        config = Path(words[words.index("--config") + 1])
        config.write_text(config.read_text() + _toml(slaves))
        with process.running(words, folder / "log", contestants.ENVIRONMENT) as child:
            found = await _watched(place, child.pid, seconds)
            if child.poll() is not None:
                raise RuntimeError((folder / "log").read_text()[-2000:])
    return found


async def _watched(place: broker.Broker, pid: int, seconds: float) -> dict[str, float]:
    async with MqttBus(f"unix:{place.socket}") as bus, bus.subscribe("mw/v1/reading/#") as batches:
        await bus.wait_connected(30)
        counted: Counter[str] = Counter()

        async def count() -> None:
            async for batch in batches:
                counted.update(message.topic.split("/")[3] for message in batch)

        counting = asyncio.create_task(count())
        speaking = asyncio.create_task(_speak(bus))
        await asyncio.sleep(WARM_S)
        counted.clear()
        before, began = process.cpu_us(pid), time.monotonic()
        await asyncio.sleep(seconds)
        elapsed = time.monotonic() - began
        busy = (process.cpu_us(pid) - before) / elapsed / 1e4
        rates = {name: count / elapsed for name, count in counted.items()}
        for task in (counting, speaking):
            task.cancel()
    return {
        "devices": DEVICES,
        "slaves": SLAVES,
        "device_readings_per_s": rates.get("zigbee2mqtt", 0.0),
        "slave_readings_per_s": rates.get("line1", 0.0),
        "ingest_cpu_percent_of_a_core": busy,
        "ingest_rss_mb": process.rss_mb(pid),
    }


async def _speak(bus: MqttBus) -> None:
    """The devices: announced once, then each in its turn."""
    exposes = [{"type": "numeric", "property": name, "unit": unit, "access": 1} for name, unit in _VALUES]
    listed = [
        {"ieee_address": f"0x{number:016x}", "friendly_name": f"plug{number}", "definition": {"exposes": exposes}}
        for number in range(DEVICES)
    ]
    for start in range(0, DEVICES, 500):  # four bridges: an announcement has its bound
        base = f"bridge{start // 500}"
        told = msgspec.json.encode(listed[start : start + 500])
        bus.publish(f"{base}/bridge/devices", told, qos=1, retain=True)
    number = 0
    while True:
        for _ in range(int(DEVICES / PERIOD_S / 20)):
            values = {name: 20.0 + number % 7 for name, _ in _VALUES}
            place = number % DEVICES
            bus.publish(f"bridge{place // 500}/plug{place}", msgspec.json.encode(values))
            number += 1
        await asyncio.sleep(0.05)


_VALUES = (("power", "W"), ("voltage", "V"), ("current", "A"), ("temperature", "°C"))


# Whom a dead slave delays


async def _delays(seconds: float) -> dict[str, float]:
    async with _Gateway() as place, _Gateway(mute={place.dead}) as partly, _Gateway(mute=set(range(256))) as dead:
        alone = await _rate([_slave(number, place.port) for number in range(SHARED)], seconds)
        beside = await _rate(
            [*(_slave(number, place.port) for number in range(SHARED)), _slave(99, dead.port)], seconds
        )
        behind = await _rate([_slave(number, partly.port) for number in range(SHARED + 1)], seconds)
    return {
        "readings_all_alive": alone,
        "lost_beside_percent": max(0.0, 100 * (1 - beside / alone)),
        "lost_behind_percent": max(0.0, 100 * (1 - behind / alone)),
    }


async def _rate(slaves: list[dict[str, Any]], seconds: float) -> float:
    """Readings a second of the slaves that are alive, once the dead one was found to be so."""
    settings = {"slaves": slaves, "interval_s": 1 / FASTER, "timeout_s": 1 / FASTER, "probe_timeout_s": 0.3 / FASTER}
    connector = modbus.create(msgspec.convert(settings, modbus.Settings))
    rest, modbus.LONGEST_REST_S = modbus.LONGEST_REST_S, modbus.LONGEST_REST_S / FASTER
    try:
        async with connector:
            await _count(connector, 12.0)
            return await _count(connector, seconds) / seconds
    finally:
        modbus.LONGEST_REST_S = rest


async def _count(connector: Connector, seconds: float) -> int:
    until, found = time.monotonic() + seconds, 0
    async for batch in connector:
        found += sum(isinstance(event, Reading) for _, event in batch)
        if time.monotonic() >= until:
            break
    return found


def _slave(unit: int, port: int) -> dict[str, Any]:
    return {"asset": f"line1/m{unit}", "host": "127.0.0.1", "port": port, "unit": unit + 1, "points": POINTS}


class _Gateway:
    """Slaves by unit, all of them zeros; those in `mute` are dead."""

    dead = SHARED + 1  # the unit that is one too many

    def __init__(self, mute: set[int] | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self._mute, self._host, self.port = mute or set(), host, port
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "_Gateway":
        self._server = await asyncio.start_server(self._answer, self._host, self.port, backlog=SLAVES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while header := await reader.read(7):
                transaction, _, length, unit = struct.unpack(">HHHB", header)
                function, _, count = struct.unpack(">BHH", await reader.readexactly(length - 1))
                if unit not in self._mute:
                    body = bytes((unit, function, 2 * count)) + bytes(2 * count)
                    writer.write(struct.pack(">HHH", transaction, 0, len(body)) + body)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the connector has closed, or the benchmark is over
        finally:
            writer.close()


async def _play_slaves(port: int) -> int:
    async with _Gateway(host="0.0.0.0", port=port):
        await asyncio.Event().wait()
    return 0


def _address(number: int) -> str:
    """An address of its own on the loopback."""
    return f"127.0.{1 + number // 200}.{1 + number % 200}"


def _toml(slaves: list[dict[str, Any]]) -> str:
    lines = ["[connectors.modbus]", "interval_s = 1.0"]
    for slave in slaves:
        lines.append("[[connectors.modbus.slaves]]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in slave.items() if name != "points"]
        inner = (
            ", ".join(f"{name} = {json.dumps(value)}" for name, value in point.items()) for point in slave["points"]
        )
        lines.append("points = [" + ", ".join(f"{{{one}}}" for one in inner) + "]")
    return "\n".join([*lines, ""])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench connect", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SPAN_S, help="of each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--slaves", type=int, metavar="PORT", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
