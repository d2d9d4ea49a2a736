"""What a site makes of bad input: counted by reason, bounded in memory, and the good goes on beside it.

Real processes and a real mosquitto: see tests/faults/site.py.
"""

import asyncio
import json
import math
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NoReturn, Protocol

import cbor2
import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.events import codec, topics
from appliance.events.schema import Alarm, AlarmState, Command, CommandState, Kind, Reading, Score, Severity, State
from appliance.inference.detector.intake import MAX_BACKWARDS
from appliance.services.words import counted
from appliance.store import history, reader
from tests.faults.plant import LEARN_ROUNDS, Machine, Plant
from tests.faults.site import PATIENCE_S, SERVICES, Site

FLOOD = 100_000  # names
COPIES = 3  # of every bad message
SECOND, DAY = 1_000_000_000, 86_400_000_000_000  # ns
LARGE = b"\0" * 10_000_000
NEARLY_LARGE = "x" * 900_000  # the bus takes a MiB
RATE_HZ = 100.0

# Small limits, so that a flood meets them at once.
MAX_JUDGED, MAX_RECORDED = 500, 1000
SETTINGS = f"""
[detect]
device = "CPU"
checkpoint_s = 1
max_assets = {MAX_JUDGED}
[record]
max_assets = {MAX_RECORDED}
[connectors.simulator]
asset = "demo/pump"
rate_hz = 10
"""

MOST_MB = {"detect": 92.0, "record": 40.0, "ingest": 24.0}  # MiB that a process has written, whatever came
RETAINED = 10  # nearly large commands that a service is given at once when it connects; they wait for their turn


class Folder(Protocol):
    """See conftest.py."""

    folder: Path


# Readings


def full(values: object, **fields: object) -> bytes:
    return cbor2.dumps({"values": values, **fields})


def bad_payloads(now: int) -> dict[str, list[bytes]]:
    """By the reason under which detect and record drop them."""
    return {
        "malformed": [
            b"",
            b"\xff\xff\xff",
            b"{",
            b'{"temperature": 61.2',
            b'{"temperature": NaN}',
            b'{"temperature": \xff}',
            b'{"at":' + b"[" * 20_000,
            b"\x81" * 20_000,  # lists in lists
            b"\xbb" + b"\xff" * 8,  # a map of 2^64 - 1 pairs
            b"\x9b\x7f" + b"\xff" * 7,
            b"\xa1\x61",
        ],
        "shape": [b"\x18\x2a", cbor2.dumps("text"), cbor2.dumps([1.0]), full([1.0]), full({"a": 1.0}, at="then")],
        "not-a-number": [
            b'{"temperature": "61.2"}',
            b'{"temperature": true}',
            b'{"temperature": null}',
            b'{"temperature": {}}',
            b'{"temperature": [1]}',
            full({"temperature": "61.2"}),
            full({"temperature": True}),
            b'{"a":' * 20_000,
        ],
        "not-finite": [
            b'{"temperature": 1e999}',
            full({"temperature": math.nan}),
            full({"temperature": math.inf}),
            full({"temperature": 1.0, "pressure": -math.inf}),
            full({"temperature": 10**400}),
        ],
        "empty": [b"{}", cbor2.dumps({}), full({}), b'{"values": {}}'],
        "too-many-points": [full({f"p{number}": 1.0 for number in range(codec.MAX_POINTS + 1)})],
        "point-name": [full({"": 1.0}), full({"a\x07": 1.0}), full({"x" * 200: 1.0}), full({7: 1.0})],
        "time-past": [full({"a": 1.0}, at=1), full({"a": 1.0}, at=-(10**30))],
        "time-future": [full({"a": 1.0}, at=now + 2 * DAY), full({"a": 1.0}, at=10**30)],
    }


BAD_TOPICS = (
    "mw/v1/reading",
    "mw/v1/reading/",
    "mw/v1/reading/Line1/pump",
    "mw/v1/reading/line 1/pump",
    "mw/v1/reading/line1//pump",
    "mw/v1/reading/größe",
    "mw/v1/reading/a/b/c/d/e/f/g/h/i",
    f"mw/v1/reading/{'x' * 400}",
    "mw/v1/reading/$sys",
)


def odd_times(now: int) -> tuple[list[int], dict[str, Counter[str]]]:
    """Times of good readings of one asset, and what each service makes of them."""
    times = [now, now, now - SECOND, now - 4000 * DAY]
    times += [now - 3600 * SECOND + row for row in range(40)]  # the clock was set back, and is believed in the end
    detect = Counter({"duplicate": 1, "time-backwards": MAX_BACKWARDS})
    return times, {"detect": detect, "record": Counter({"duplicate": 1, "expired": 1})}


def odd_channels() -> list[dict[str, float]]:
    """A channel appears, vanishes and comes back."""
    rows = [{"a": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0}, {"b": 2.0, "a": 1.0}, {"b": 2.0}]
    return [row for row in rows for _ in range(80)]


def publish_large(path: Path, topic: str, *, retain: bool = False) -> None:
    """10 MB, of QoS 0 and 1. Our own session refuses to."""
    client = paho.Client(CallbackAPIVersion.VERSION2, transport="unix")
    client.connect(str(path))
    client.loop_start()
    for qos in (0, 1):
        client.publish(topic, LARGE, qos, retain).wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()


def test_every_bad_reading_is_counted_under_its_reason(quiet_box: Folder) -> None:
    async def scenario() -> None:
        async with Site(quiet_box.folder, SETTINGS) as site:
            expected = await publish_bad_readings(site)
            for name, dropped in expected.items():
                total = dropped.total()
                await site.until(partial(has_dropped, site, name, total), f"{name} to have dropped {total}")
                state = site.states[name]
                assert state.dropped == dropped
                assert state.received == state.processed + total
            await check_it_is_shown(site, expected)
            ends = await site.stop()
            assert {code for code, _ in ends.values()} == {0}

    asyncio.run(scenario())


def has_dropped(site: Site, name: str, count: int) -> bool:
    state = site.states[name]
    return sum(state.dropped.values()) >= count and not state.queued


def has_received(site: Site, name: str, count: int) -> bool:
    return site.states[name].received >= count


async def publish_bad_readings(site: Site) -> dict[str, Counter[str]]:
    """Service -> what it has to drop."""
    now, topic = time.time_ns(), topics.topic(Kind.READING, "odd/payloads")
    payloads = bad_payloads(now)
    messages = [Message(topic, payload) for bad in payloads.values() for payload in bad]
    messages += [Message(topic, b'{"temperature": 61.2}') for topic in BAD_TOPICS]
    messages *= COPIES
    times, made = odd_times(now)
    topic = topics.topic(Kind.READING, "odd/times")
    messages += [Message(topic, codec.encode(Reading(at, {"a": 1.0}))) for at in times]
    topic = topics.topic(Kind.READING, "odd/channels")
    messages += [
        Message(topic, codec.encode_json(Reading(now + row, values))) for row, values in enumerate(odd_channels())
    ]
    site.bus.publish_many(messages)
    await site.bus.drain()
    await asyncio.to_thread(publish_large, site.folder / "run/mqtt.sock", topics.topic(Kind.READING, "odd/large"))
    both = Counter({reason: COPIES * len(bad) for reason, bad in payloads.items()})
    both += Counter({"topic": COPIES * len(BAD_TOPICS), "too-large": 2})
    return {name: both + dropped for name, dropped in made.items()}


async def check_it_is_shown(site: Site, dropped: dict[str, Counter[str]]) -> None:
    _, output, errors = await site.run("doctor", "--json")
    assert errors == ""
    findings = strict(output)["findings"]
    for name, reasons in dropped.items():
        told = [finding["detail"] for finding in findings if finding["name"] == f"{name} drops"]
        assert len(told) == len(reasons)
        for reason, count in reasons.items():
            assert any(detail.startswith(f"dropped {counted(count, 'message')}: {reason}") for detail in told), reason
    _, output, errors = await site.run("watch", "--json", "--seconds", "1")
    assert errors == ""
    assert strict(output.splitlines()[-1])["dropped"] == dropped["detect"] + dropped["record"]


def strict(text: str) -> dict[str, Any]:
    """JSON as the standard has it."""
    value: dict[str, Any] = json.loads(text, parse_constant=_refuse)
    return value


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


# A flood


def test_a_flood_of_names_leaves_the_good_alone(quiet_box: Folder) -> None:
    async def scenario() -> None:
        async with Site(quiet_box.folder, SETTINGS) as site, working(site) as (plant, scores):
            good, faulty, _ = plant.machines
            await raise_alarm(site, faulty)
            before = {name: site.states[name].received for name in ("detect", "record")}
            flooding = asyncio.create_task(flood(site))
            await operate(site, faulty, flooding)
            await flooding
            rounds = plant.rounds
            for name, received in before.items():
                await site.until(partial(has_received, site, name, received + FLOOD), f"{name} to have the flood")
                state = site.states[name]
                print(f"{name}: {state.received} received, {state.processed} taken, dropped {state.dropped}")
                assert state.received == state.processed + state.queued + sum(state.dropped.values())
            assert site.states["detect"].detail["assets"] <= MAX_JUDGED
            assert site.states["record"].detail["assets"] <= MAX_RECORDED
            check_memory(site)
            await plant.work(10)
            times = good.times[:rounds]
            await site.until(lambda: scores[-1].at >= times[-1], "the good machine's last score")
            ends = await site.stop()
            assert {code for code, _ in ends.values()} == {0}
            assert set(times[LEARN_ROUNDS:]) <= {score.at for score in scores}
            check_recorded(site, good, times)

    asyncio.run(scenario())


async def flood(site: Site) -> None:
    """Every message is of an asset that nobody has heard of."""
    names = (topics.topic(Kind.READING, f"flood/n{number}") for number in range(FLOOD))
    async with MqttBus(f"unix:{site.folder}/run/mqtt.sock") as bus:
        await bus.wait_connected(PATIENCE_S)
        while some := [Message(name, b'{"temperature": 61.2}') for name in islice(names, 1000)]:
            bus.publish_many(some)
            await bus.drain()


@asynccontextmanager
async def working(site: Site) -> AsyncIterator[tuple[Plant, list[Score]]]:
    """Three machines that have learned, and the scores of the first from then on."""
    scores: list[Score] = []
    async with MqttBus(f"unix:{site.folder}/run/mqtt.sock") as bus:
        await bus.wait_connected(PATIENCE_S)
        plant = Plant(bus, 3, RATE_HZ)
        tasks = [asyncio.create_task(plant.run()), asyncio.create_task(_collect(bus, plant.machines[0], scores))]
        try:
            await plant.work(LEARN_ROUNDS)
            await site.until(lambda: site.states["detect"].detail["stages"]["alarming"] >= 3, "all machines learned")
            yield plant, scores
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _collect(bus: MqttBus, machine: Machine, scores: list[Score]) -> None:
    async with bus.subscribe(topics.topic(Kind.SCORE, machine.name)) as batches:
        async for batch in batches:
            for message in batch:
                score = codec.decode(Kind.SCORE, message.payload, 0)
                assert isinstance(score, Score)
                scores.append(score)


async def raise_alarm(site: Site, machine: Machine) -> None:
    machine.fault = "pressure"
    await site.until(lambda: machine.name in site.alarms, f"an alarm of {machine.name}")
    assert site.alarms[machine.name].cause == "pressure"


async def operate(site: Site, machine: Machine, meanwhile: "asyncio.Task[None]") -> None:
    """What a person says of an alarm, again and again."""
    for verb in cycle((("ack",), ("shelve", "--minutes", "5"), ("unshelve",))):
        code, _, errors = await site.run("alarms", verb[0], machine.name, *verb[1:])
        assert (code, errors) == (0, "")
        if meanwhile.done():
            break


def check_memory(site: Site, waiting: int = 0) -> None:
    """`waiting`: messages, nearly large, that ingest, the smallest of them, may have held beside its bound."""
    bounds = {**MOST_MB, "ingest": MOST_MB["ingest"] + waiting * len(NEARLY_LARGE) / 2**20}
    used = {name: site.memory_mb(name) for name in MOST_MB}
    print({name: f"{mb:.0f} MiB" for name, mb in used.items()})
    assert all(used[name] < most for name, most in bounds.items()), used


def check_recorded(site: Site, machine: Machine, times: "array[int]") -> None:
    with reader.reading(site.state / history.FILE) as recorded:
        found = {reading.at for reading in recorded.readings(machine.name)}
    assert set(times) <= found


# What the broker keeps


def hostile_alarms(now: int) -> list[Message]:
    good = Alarm("a1", now, now, AlarmState.UNACKNOWLEDGED, Severity.ALARM, "temperature", 2.0, 1.6)
    other = msgspec.structs.replace(good, condition="fire")
    alarms = [
        good,  # of a former life: ended by detect
        msgspec.structs.replace(other, at=10**30, raised=-(10**30)),
        msgspec.structs.replace(other, score=math.nan, threshold=math.inf),
        msgspec.structs.replace(other, id=NEARLY_LARGE),
        msgspec.structs.replace(good, id=NEARLY_LARGE),
        msgspec.structs.replace(other, cause="\x1b[2J\x07\n", message="\u202e"),
    ]
    fields = msgspec.to_builtins(good)
    odd: tuple[object, ...] = (None, [], {}, "?", -1, 10**30)
    wrong = [{**fields, name: value} for name in fields for value in odd]
    return [
        *(
            Message(topics.topic(Kind.ALARM, f"evil/a{number}"), codec.encode(alarm))
            for number, alarm in enumerate(alarms)
        ),
        *(
            Message(topics.topic(Kind.ALARM, f"evil/w{number}"), cbor2.dumps(fields))
            for number, fields in enumerate(wrong)
        ),
        *(Message(topics.topic(Kind.ALARM, f"evil/g{number}"), value) for number, value in enumerate(GARBAGE)),
        Message("mw/v1/alarm/EVIL", codec.encode(good)),
        Message("mw/v1/alarm", codec.encode(good)),
    ]


GARBAGE = (b"\xff\xff", b"{", b"[]", b"0", b"\x81" * 20_000, cbor2.dumps(["text"]), b'{"at": "x"}', b"\0" * 900_000)


def hostile_states(now: int) -> list[Message]:
    states = [
        State(10**30, True, received=-1, processed=10**40, dropped={"x\x1b[2J": 10**40}),
        State(now, True, NEARLY_LARGE),
        State(now, True, detail={"trouble": {"deep": [None] * 1000}, "examples": 7, "stages": "none"}),
    ]
    return [
        *(Message(topics.state(f"s{number}"), codec.encode(state)) for number, state in enumerate(states)),
        *(Message(topics.state(f"many{number}"), codec.encode(State(now, True))) for number in range(200)),
        *(Message(topics.state(f"g{number}"), value) for number, value in enumerate(GARBAGE)),
        *(Message(topics.state(name), GARBAGE[0]) for name in SERVICES),
    ]


def hostile_commands(now: int) -> list[Message]:
    init = Command(now, CommandState.INIT)
    arguments: list[dict[str, Any]] = [
        {"alarm": NEARLY_LARGE},
        {"alarm": 7},
        {"alarm": "evil/a1", "minutes": -(10**30)},
        {"alarm": "plant/line0/m00", "minutes": math.nan},
        {"alarm": cbor2.CBORTag(1000, "a")},
        {"fault": "none"},
        {},
    ]
    somebody = Command(now, CommandState.INIT, {"alarm": "plant/line0/m00"}, by=NEARLY_LARGE)
    asked = [
        (service, verb, cbor2.dumps({"at": now, "state": state, "args": args}))
        for service in SERVICES
        for verb in ("ack", "shelve", "unshelve", "inject", "explode")
        for state in ("init", "executing")
        for args in arguments
    ]
    return [
        *(
            Message(topics.command(service, verb, f"c{number}"), data)
            for number, (service, verb, data) in enumerate(asked)
        ),
        *(Message(topics.command("detect", "ack", f"g{number}"), value) for number, value in enumerate(GARBAGE)),
        Message(topics.command("detect", "ack", "somebody"), codec.encode(somebody)),
        Message("mw/v1/command/detect", codec.encode(init)),
        Message("mw/v1/command/detect/ack/a/b/c", codec.encode(init)),
        Message("mw/v1/command/detect/ACK/a", codec.encode(init)),
    ]


def test_hostile_retained_messages_stop_nothing(quiet_box: Folder) -> None:
    async def scenario() -> None:
        async with Site(quiet_box.folder, SETTINGS) as site, working(site) as (plant, _):
            await raise_alarm(site, plant.machines[0])
            now = time.time_ns()
            for message in (*hostile_alarms(now), *hostile_states(now), *hostile_commands(now)):
                site.bus.publish(message.topic, message.payload, qos=1, retain=True)
            await site.bus.drain()
            path = site.folder / "run/mqtt.sock"
            for kind in (Kind.ALARM, Kind.STATE, Kind.COMMAND):
                await asyncio.to_thread(publish_large, path, topics.topic(kind, "detect/ack/large"), retain=True)
            said = time.time_ns()
            await site.until(lambda: all(site.online(name, said) for name in SERVICES), "the services' own words again")
            await check_all_works(site, plant.machines[1])
            assert {process.starts for process in site.processes.values()} == {1}
            await site.until(partial(refuses_commands, site), "refused commands")
            await site.kill(SERVICES)  # they find it all again
            await check_all_works(site, plant.machines[2])
            assert {name: process.starts for name, process in site.processes.items()} == {
                "broker": 1,
                **dict.fromkeys(SERVICES, 2),
            }
            check_memory(site, RETAINED)
            ends = await site.stop()
            assert {code for code, _ in ends.values()} == {0}

    asyncio.run(scenario())


def refuses_commands(site: Site) -> bool:
    """Malformed ones are counted."""
    reasons = {name: set(site.states[name].detail.get("commands_dropped", ())) for name in ("detect", "ingest")}
    return reasons["detect"] >= {"malformed", "shape", "topic"} and reasons["ingest"] >= {"shape"}


async def check_all_works(site: Site, machine: Machine) -> None:
    """A fault is an alarm, it can be acknowledged, and a person sees it."""
    await raise_alarm(site, machine)
    code, _, errors = await site.run("alarms", "ack", machine.name)
    assert (code, errors) == (0, "")
    await site.until(lambda: site.alarms[machine.name].state is AlarmState.ACKNOWLEDGED, "the acknowledgement")
    code, output, errors = await site.run("alarms", "list", "--json")
    assert (code, errors) == (4, "")
    assert machine.name in {alarm["asset"] for alarm in strict(output)["alarms"]}
    _, output, errors = await site.run("doctor", "--json")
    assert errors == ""
    found = [finding for finding in strict(output)["findings"] if finding["name"] in SERVICES]
    assert [finding["status"] for finding in found] == ["ok"] * len(SERVICES), found
    code, output, errors = await site.run("watch", "--json", "--seconds", "1")
    assert (code, errors) == (0, "")
    summary = [strict(line) for line in output.splitlines()][-1]
    assert machine.name in {alarm["asset"] for alarm in summary["standing"]}
