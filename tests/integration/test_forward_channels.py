"""Home Assistant's discovery, Sparkplug's births and deaths, over a real broker."""

import asyncio
import json
import platform
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Batch, Message
from appliance.channels.leaving import home
from appliance.channels.leaving.edge import REBIRTH
from appliance.config import schema
from appliance.events.schema import AlarmState, Command
from appliance.forwarding import box_name
from appliance.protocols import sparkplug
from appliance.protocols.sparkplug import Metric, Payload, Type, Verb
from appliance.runtime.group import Heart
from appliance.services.metrics import Metrics
from tests.forwarding import PATIENCE_S, Server, Site, played

NOTIFY = '[forward.apprise]\nservice = {vault = "notify/people"}\n'
HOME = '[forward.home_assistant]\nurl = "{far}"\nprefix = "mw/box"\ninterval_s = 0\n'
POINTS = """
[[points]]
asset = "line1/pump"
point = "lamp"
type = "switch"

[[points]]
asset = "line1/pump"
point = "speed"
type = "number"
max = 50.0

[[points]]
asset = "line1/pump"
point = "valve"
type = "switch"
confirmation = "anyone"
"""
SCADA = '[forward.sparkplug]\nurl = "{far}"\ngroup = "plant"\nnode = "box"\nhost = "scada"\n'


async def until(batches: AsyncIterator[Batch], wanted: Any) -> dict[str, Message]:
    """What came, by topic, until it is enough."""
    found: dict[str, Message] = {}
    async for batch in batches:
        found |= {message.topic: message for message in batch}
        if wanted(found):
            break
    return found


BOX = box_name(platform.node())


def test_home_assistant_gets_devices_and_its_buttons_acknowledge() -> None:
    config = home.topic("homeassistant", home.identity(BOX, "line1/pump"))

    async def scenario(site: Site) -> None:
        asked: asyncio.Queue[Command] = asyncio.Queue()

        def acknowledge(command: Command) -> dict[str, Any]:
            asked.put_nowait(command)
            return {}

        async with MqttBus(site.far.url) as ha, ha.subscribe("homeassistant/#", "mw/#", qos=1) as batches:
            await ha.wait_connected(PATIENCE_S)
            async with site.forwarding(HOME):
                site.plant.publish_many([site.reading(1), site.alarm(1)])
                found = await until(
                    batches,
                    lambda found: {config, "mw/box/alarm/line1/pump", "mw/box/reading/line1/pump"} <= found.keys(),
                )
                assert found["mw/box/availability"].payload == b"online"
                components = json.loads(found[config].payload)["cmps"]
                assert json.loads(found["mw/box/alarm/line1/pump"].payload)["state"] == "unacknowledged"
                button = components["alarm-ack"]
                async with site.serve("detect", {"ack": acknowledge}):
                    ha.publish(button["cmd_t"], button["pl_prs"].encode(), qos=1)
                    assert (await asked.get()).args == {"alarm": "a1"}
                ha.publish("homeassistant/status", b"online", qos=1)
                assert config in await until(batches, lambda found: config in found)
            gone = await until(batches, lambda found: "mw/box/availability" in found)
            assert gone["mw/box/availability"].payload == b"offline"

    played(scenario)


def test_home_assistant_sets_what_is_declared_and_nothing_else() -> None:
    config = home.topic("homeassistant", home.identity(BOX, "line1/pump"))

    async def scenario(site: Site) -> None:
        asked: asyncio.Queue[Command] = asyncio.Queue()

        def take(command: Command) -> dict[str, Any]:
            asked.put_nowait(command)
            return {}

        async with MqttBus(site.far.url) as ha, ha.subscribe("homeassistant/#", qos=1) as batches:
            await ha.wait_connected(PATIENCE_S)
            async with site.forwarding(HOME + "settable = true\n" + POINTS), site.serve("ingest", {"set": take}):
                site.plant.publish_many([site.reading(1)])
                found = await until(batches, lambda found: config in found)
                components = json.loads(found[config].payload)["cmps"]
                assert "set-valve" not in components  # it wants a second word, which nobody can give there
                order = components["set-lamp"]["pl_on"]
                topic = components["set-lamp"]["cmd_t"]
                for wrong in ("{", order.replace("lamp", "valve"), order.replace("line1", "line2"), "[]"):
                    ha.publish(topic, wrong.encode(), qos=1)
                ha.publish(topic, order.encode(), qos=1)
                ha.publish(topic, b'{"asset": "line1/pump", "point": "speed", "value": 12.5}', qos=1)
                told = [await asked.get(), await asked.get()]
        assert [one.args for one in told] == [
            {"asset": "line1/pump", "point": "lamp", "value": True},
            {"asset": "line1/pump", "point": "speed", "value": 12.5},
        ]
        assert {one.by for one in told} == {"home assistant"}
        assert asked.empty()

    played(scenario)


def test_home_assistant_sets_nothing_unless_that_is_turned_on() -> None:
    config = home.topic("homeassistant", home.identity(BOX, "line1/pump"))

    async def scenario(site: Site) -> None:
        async with MqttBus(site.far.url) as ha, ha.subscribe("homeassistant/#", qos=1) as batches:
            await ha.wait_connected(PATIENCE_S)
            async with site.forwarding(HOME + POINTS):
                site.plant.publish_many([site.reading(1)])
                found = await until(batches, lambda found: config in found)
        assert not [key for key in json.loads(found[config].payload)["cmps"] if key.startswith("set-")]

    played(scenario)


def test_ghosts_of_this_box_are_taken_out_and_those_of_others_stay() -> None:
    ghost = home.topic("homeassistant", home.identity(BOX, "old/pump"))
    known = home.topic("homeassistant", home.identity(BOX, "line1/fan"))
    other = home.topic("homeassistant", "mw_another-pump")

    async def scenario(site: Site) -> None:
        async with MqttBus(site.far.url) as ha:
            await ha.wait_connected(PATIENCE_S)
            for topic in (ghost, known, other):
                ha.publish(topic, b"{}", qos=1, retain=True)
            seen = {home.identity(BOX, "line1/fan"): 2**62}
            ha.publish("mw/box/known", msgspec.json.encode(seen), qos=1, retain=True)
            await ha.drain()
            async with ha.subscribe("homeassistant/#", "mw/box/availability", qos=1) as batches, site.forwarding(HOME):
                found = await until(
                    batches, lambda found: found.get("mw/box/availability", Message("", b"")).payload == b"online"
                )
        assert {topic: found[topic].payload for topic in (ghost, known, other)} == {
            ghost: b"",
            known: b"{}",
            other: b"{}",
        }

    played(scenario)


def test_sparkplug_waits_for_its_host_is_born_again_when_told_and_dies() -> None:
    state, death = sparkplug.host("scada"), sparkplug.topic("plant", Verb.NDEATH, "box")
    birth, data = (
        sparkplug.topic("plant", Verb.NBIRTH, "box"),
        sparkplug.topic("plant", Verb.DDATA, "box", "line1:pump"),
    )

    async def scenario(site: Site) -> None:
        async with MqttBus(site.far.url) as scada, scada.subscribe("spBv1.0/plant/#", qos=1) as batches:
            await scada.wait_connected(PATIENCE_S)
            async with site.forwarding(SCADA):
                site.plant.publish_many([site.reading(1)])
                await site.until("sparkplug", lambda found: found["queued"].get("reading") == 1)
                scada.publish(state, b'{"online":true,"timestamp":1}', qos=1, retain=True)
                found = await until(batches, lambda found: data in found)
                assert list(found) == [birth, sparkplug.topic("plant", Verb.DBIRTH, "box", "line1:pump"), data]
                assert sparkplug.decode(found[data].payload).metrics[0].is_historical
                order = sparkplug.encode(Payload((Metric(REBIRTH, True, Type.BOOLEAN),)))
                scada.publish(sparkplug.topic("plant", Verb.NCMD, "box"), order, qos=1)
                assert birth in await until(batches, lambda found: birth in found)
                scada.publish(state, b'{"online":false,"timestamp":2}', qos=1, retain=True)
                await site.until("sparkplug", lambda found: "has left" in found["error"])
                assert death in await until(batches, lambda found: death in found)

    played(scenario)


# Notifications


def test_people_are_told_of_alarms_once_and_of_the_newest_state() -> None:
    async def scenario(site: Site) -> None:
        people = Server()
        people.answers = [500, 200]
        async with people.listening():
            site.secrets["notify/people"] = f"json://localhost:{people.port}/".encode()
            async with site.forwarding(NOTIFY):
                site.plant.publish_many([site.reading(1), site.alarm(1, text="call 13800138000")])
                await people.heard(1)
                site.plant.publish_many([site.alarm(1, AlarmState.ACKNOWLEDGED), site.alarm(1, AlarmState.NORMAL)])
                first, second = await people.heard(2)
        assert first["title"] == f"{BOX}: line1/pump alarm (n) stands"
        assert "call <phone>" in first["message"]
        assert first["type"] == "failure"
        assert second["title"].endswith("is over")

    played(scenario)


def test_a_url_that_is_none_is_told_without_its_secret() -> None:
    async def scenario(site: Site) -> None:
        site.secrets["notify/people"] = b"nonsense://topsecret"
        async with site.forwarding(NOTIFY):
            told = await site.until("apprise", lambda found: bool(found["error"]))
            assert "line 1 of 'notify/people'" in told["error"]
            assert "topsecret" not in told["error"]

    played(scenario)


# Prometheus


def test_metrics_are_told_in_prometheus_format() -> None:
    async def scenario(site: Site) -> None:
        service = Metrics(MqttBus(site.near.url), MqttBus(site.near.url), schema.Metrics(0), time.time_ns)
        heart = Heart("metrics")
        task = asyncio.create_task(service.run(heart))
        await heart.is_ready.wait()
        async with site.forwarding('[forward.mqtt]\nurl = "{far}"\nprefix = "x"\n'):
            await site.until("mqtt", lambda found: found["line"] == "open")
            kept = msgspec.structs.replace(site.alarm(1), retain=True)
            site.plant.publish_many([site.reading(7), site.reading(8, "line/13800138000"), kept])
            await site.until("mqtt", lambda found: found["sent"] >= 3)
            text = await _get(service.port, "/metrics")
            while 'asset="line/<phone>"' not in text or "millwright_alarm{" not in text:
                text = await _get(service.port, "/metrics")
        task.cancel()
        await asyncio.wait([task])
        assert 'millwright_reading{asset="line1/pump",point="n"} 7' in text
        assert (
            'millwright_alarm{asset="line1/pump",condition="anomaly",severity="alarm",state="unacknowledged"} 1' in text
        )
        assert 'millwright_forward_line_open{destination="mqtt"} 1' in text
        assert "13800138000" not in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))
        for line in text.splitlines():
            assert line.startswith("# ") or re.fullmatch(
                r'[a-z_]+(\{([a-z]+="[^"]*",?)*\})? [-+0-9.eE]+|.* NaN', line
            ), line

    played(scenario)


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 200")
    return answer.partition("\r\n\r\n")[2]
