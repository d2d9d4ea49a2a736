"""What receiving a message costs: our bus beside mosquitto_sub and stock paho, through one broker, in one run.

CPU (user and system) microseconds a message of the receiving process alone, 200-byte payloads over a unix socket, from
the moment it has subscribed to its end. The contestants take turns; the figures are medians of all rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from tools.benchmarks import broker
from tools.benchmarks.figures import Goal, median

OURS, MOSQUITTO_SUB, STOCK = "ours", "mosquitto_sub", "stock paho"
CONTESTANTS = (OURS, MOSQUITTO_SUB, STOCK)
FLAT_OUT, PACED = "flat out", "5,000/s"
RATES = {FLAT_OUT: 0, PACED: 5000}  # messages a second; 0: as fast as the broker takes them
COUNTS = {FLAT_OUT: 240_000, PACED: 15_000}
ROUNDS = 4
TOPICS = [f"mw/v1/reading/bench/pump{number:02d}" for number in range(100)]
FILTER = "mw/v1/reading/#"
PAYLOAD = bytes(range(200))
JOINED = 1000  # messages handed over at once, flat out
PATIENCE_S = 30.0
READY_S = 15.0


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if options.role:
        ROLES[options.role](options.socket, options.count, options.rate)
        return 0
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as folder, broker.running(Path(folder)) as server:
        samples = _rounds(server, options.rounds)
    goals = _goals(samples)
    _print(samples, goals)
    if options.json:
        options.json.write_text(json.dumps(_plain(samples, goals), indent=2) + "\n")
    return 0 if all(goal.met for goal in goals) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench bus", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each contestant (%(default)s)")
    parser.add_argument("--role", choices=[*ROLES], help=argparse.SUPPRESS)
    parser.add_argument("--socket", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# Measuring

Samples = dict[str, dict[str, list[float]]]  # load -> contestant -> microseconds a message, by round


def _rounds(server: broker.Broker, rounds: int) -> Samples:
    samples: Samples = {load: {name: [] for name in CONTESTANTS} for load in RATES}
    for number in range(rounds):
        for load in RATES:
            for name in CONTESTANTS:
                samples[load][name].append(_measure(server, name, load))
                print(
                    f"round {number + 1}  {load:<9} {name:<14} {samples[load][name][-1]:6.2f} us a message", flush=True
                )
    return samples


def _measure(server: broker.Broker, name: str, load: str) -> float:
    """CPU microseconds a message of one receiver from its subscription to its end."""
    count = COUNTS[load]
    server.log.write_bytes(b"")
    child = subprocess.Popen(_receiver(name, server.socket, count), stdout=subprocess.DEVNULL)
    try:
        server.wait_for_subscription(FILTER, READY_S, child)
        before = _cpu_us(child.pid)
        publish = _role("publish", server.socket, count, RATES[load])
        subprocess.run(publish, check=True, timeout=PATIENCE_S)
        return (_end_us(child) - before) / count
    finally:
        if child.returncode is None:
            child.kill()
            child.wait()


def _end_us(child: "subprocess.Popen[bytes]") -> float:
    """All CPU that the child has used when it ends by itself. TimeoutError where it does not: messages are missing."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                raise RuntimeError(f"the receiver ended with code {child.returncode}")
            return 1e6 * (usage.ru_utime + usage.ru_stime)
        time.sleep(0.01)
    raise TimeoutError(f"the receiver still waits for messages after {PATIENCE_S:.0f} s")


def _cpu_us(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def _receiver(name: str, socket: Path, count: int) -> list[str]:
    if name == MOSQUITTO_SUB:
        return ["mosquitto_sub", "--unix", str(socket), "-t", FILTER, "-C", str(count)]
    return _role("ours" if name == OURS else "stock", socket, count, 0)


def _role(role: str, socket: Path, count: int, rate: int) -> list[str]:
    words = ["--role", role, "--socket", str(socket), "--count", str(count), "--rate", str(rate)]
    return [sys.executable, "-m", "tools.benchmarks.bus", *words]


# Reporting


def _ratios(samples: Samples) -> dict[str, float]:
    middle = {load: {name: median(rounds) for name, rounds in names.items()} for load, names in samples.items()}
    return {
        "flat out, ours to mosquitto_sub": middle[FLAT_OUT][OURS] / middle[FLAT_OUT][MOSQUITTO_SUB],
        "flat out, stock paho to ours": middle[FLAT_OUT][STOCK] / middle[FLAT_OUT][OURS],
        "at 5,000/s, ours to mosquitto_sub": middle[PACED][OURS] / middle[PACED][MOSQUITTO_SUB],
        "at 5,000/s, stock paho to ours": middle[PACED][STOCK] / middle[PACED][OURS],
    }


def _goals(samples: Samples) -> list[Goal]:
    ratios = _ratios(samples)
    return [
        Goal("flat out, ours to mosquitto_sub", 0.5, ratios["flat out, ours to mosquitto_sub"], at_most=True),
        Goal("flat out, stock paho to ours", 12, ratios["flat out, stock paho to ours"]),
        Goal("at 5,000/s, ours to mosquitto_sub", 1, ratios["at 5,000/s, ours to mosquitto_sub"], at_most=True),
    ]


def _print(samples: Samples, goals: Sequence[Goal]) -> None:
    print(f"\n{'CPU us a message':<20}{'median':>8}{'least':>8}{'most':>8}")
    for load, names in samples.items():
        for name, rounds in names.items():
            print(f"{load:<10}{name:<14}{median(rounds):4.2f}{min(rounds):8.2f}{max(rounds):8.2f}")
    print()
    for goal in goals:
        print(goal.line())


def _plain(samples: Samples, goals: Sequence[Goal]) -> dict[str, Any]:
    return {
        "unit": "CPU microseconds a message, receiving process",
        "payload_bytes": len(PAYLOAD),
        "messages": COUNTS,
        "rounds": samples,
        "median": {load: {name: median(each) for name, each in names.items()} for load, names in samples.items()},
        "ratios": _ratios(samples),
        "goals": [goal.plain() for goal in goals],
    }


# The roles: what the child processes do


def _receive_ours(socket: str, count: int, _rate: int) -> None:
    uvloop.run(_consume(socket, count))
    os._exit(0)


async def _consume(socket: str, count: int) -> None:
    async with MqttBus(f"unix:{socket}") as bus, bus.subscribe(FILTER) as batches:
        async for batch in batches:
            count -= len(batch)
            if count <= 0:
                return


def _receive_stock(socket: str, count: int, _rate: int) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2, transport="unix")
    left = count

    def on_message(_client: paho.Client, _data: object, _message: paho.MQTTMessage) -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(0)

    def on_connect(*_: object) -> None:
        client.subscribe(FILTER)

    client.on_connect = on_connect
    client.on_message = on_message
    client.connect(socket)
    client.loop_forever()


def _publish(socket: str, count: int, rate: int) -> None:
    uvloop.run(_pour(socket, count, rate))


async def _pour(socket: str, count: int, rate: int) -> None:
    messages = [Message(topic, PAYLOAD) for topic in TOPICS] * (JOINED // len(TOPICS))
    async with MqttBus(f"unix:{socket}") as bus:
        await bus.wait_connected(READY_S)
        await (_pour_evenly(bus, count, rate) if rate else _pour_all(bus, messages, count))


async def _pour_all(bus: MqttBus, messages: Sequence[Message], count: int) -> None:
    for _ in range(count // JOINED):
        bus.publish_many(messages)
        await bus.drain()


async def _pour_evenly(bus: MqttBus, count: int, rate: int) -> None:
    """One by one, as independent devices do; nothing else waits in this process, so it may sleep."""
    start = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))  # noqa: ASYNC251
        bus.publish(TOPICS[number % len(TOPICS)], PAYLOAD)
        await bus.drain()


ROLES: Mapping[str, Any] = {"ours": _receive_ours, "stock": _receive_stock, "publish": _publish}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
