"""Devices found by themselves over a real broker: from a fresh start to readings that are judged, and names."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from appliance.bus.mqtt import MqttBus
from appliance.cli import devices as command
from appliance.events import codec
from appliance.events.schema import Device, Kind, Score, Stage
from tests.forwarding import Mosquitto
from tests.integration.conftest import PATIENCE_S, Box

ADDRESS = "0x00158d00018255df"
ASSET = f"zigbee2mqtt/{ADDRESS}"
PLUG = {
    "ieee_address": ADDRESS,
    "friendly_name": "pump_plug",
    "type": "Router",
    "definition": {
        "vendor": "Acme",
        "model": "TS011F",
        "exposes": [
            {"type": "numeric", "name": "power", "property": "power", "unit": "W", "access": 1},
            {"type": "numeric", "name": "temperature", "property": "temperature", "unit": "°C", "access": 1},
            {"type": "binary", "name": "state", "property": "state", "value_on": "ON", "value_off": "OFF", "access": 7},
        ],
    },
}
FRESH_S = 60  # from the start to the first judgement


@asynccontextmanager
async def running(box: Box, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Millwright, until the block ends."""
    process = await box.start("run", *words)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            _, errors = await process.communicate()
        assert b"Traceback" not in errors, errors.decode()


def no_connectors(box: Box) -> None:
    """Only what is found by itself."""
    box.config.write_text(box.config.read_text() + "[connectors]\n")


def introduce(bus: MqttBus, *devices: dict[str, Any]) -> None:
    """What Zigbee2MQTT publishes when it starts."""
    bus.publish("zigbee2mqtt/bridge/state", b'{"state":"online"}', qos=1, retain=True)
    bus.publish("zigbee2mqtt/bridge/info", json.dumps({"version": "2.1.0"}).encode(), qos=1, retain=True)
    listed = [{"ieee_address": "0x00124b0001", "type": "Coordinator", "friendly_name": "Coordinator"}, *devices]
    bus.publish("zigbee2mqtt/bridge/devices", json.dumps(listed).encode(), qos=1, retain=True)
    for device in devices:
        topic = f"zigbee2mqtt/{device['friendly_name']}/availability"
        bus.publish(topic, b'{"state":"online"}', qos=1, retain=True)


def report(bus: MqttBus, number: int) -> None:
    values = {"power": 100 + number % 7, "temperature": 20 + number % 3, "state": "ON", "linkquality": 90}
    bus.publish("zigbee2mqtt/pump_plug", json.dumps(values).encode())


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Ask again and again, each question taking its own time."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await condition()):
            pass
    assert found, what
    return found


async def device_of(bus: MqttBus, asset: str) -> Device | None:
    return dict(await command.found(bus)).get(asset)


def test_from_a_fresh_start_to_the_first_judgement_of_an_unconfigured_device(quiet_box: Box) -> None:
    async def main() -> None:
        began = time.monotonic()
        async with running(quiet_box), MqttBus(quiet_box.url) as bus:
            await bus.wait_connected(PATIENCE_S)
            async with bus.subscribe(f"mw/v1/score/{ASSET}") as scores, asyncio.timeout(FRESH_S):
                introduce(bus, PLUG)
                await until(lambda: device_of(bus, ASSET), "the device is found")
                for number in range(400):
                    report(bus, number)
                    await bus.drain()
                async for batch in scores:
                    score = codec.decode(Kind.SCORE, batch[-1].payload, time.time_ns())
                    assert isinstance(score, Score)
                    if score.rows:
                        break
            print(f"first judgement after {time.monotonic() - began:.1f} s, no file edited")

    quiet_box.config.write_text(quiet_box.config.read_text())  # as it was: only where this test's folders are
    asyncio.run(main())


def test_a_slow_device_is_looked_at_from_its_first_report_on(quiet_box: Box) -> None:
    async def main() -> None:
        async with running(quiet_box), MqttBus(quiet_box.url) as bus:
            await bus.wait_connected(PATIENCE_S)
            async with bus.subscribe(f"mw/v1/score/{ASSET}") as scores, asyncio.timeout(FRESH_S):
                introduce(bus, PLUG)
                await until(lambda: device_of(bus, ASSET), "the device is found")
                report(bus, 1)
                batch = await anext(aiter(scores))
        score = codec.decode(Kind.SCORE, batch[0].payload, time.time_ns())
        assert isinstance(score, Score)
        assert (score.rows, score.stage, score.score) == (1, Stage.COLLECTING, 0.0)

    asyncio.run(main())


def test_devices_of_a_gateways_own_broker_are_heard_without_a_file_edited(quiet_box: Box) -> None:
    (quiet_box.folder / "far").mkdir()
    elsewhere = Mosquitto(quiet_box.folder / "far")

    async def main() -> str:
        await elsewhere.start()
        try:
            async with running(quiet_box, "--hear", elsewhere.url), MqttBus(elsewhere.url) as gateway:
                await gateway.wait_connected(PATIENCE_S)
                code, told, errors = await box_asked(quiet_box)
                assert code == 0, errors
                introduce(gateway, PLUG)
                async with MqttBus(quiet_box.url) as bus:
                    await bus.wait_connected(PATIENCE_S)
                    await until(lambda: device_of(bus, ASSET), "the device is found")
        finally:
            await elsewhere.kill()
        return told

    told = asyncio.run(main())
    for wanted in ("run --hear mqtt://", "listen_port = 1884", "tls_port = 8883", "devices certify z2m --publish"):
        assert wanted in told


async def box_asked(box: Box) -> tuple[int, str, str]:
    """What a person is told whose devices are not here, once somebody answers."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := await box.run("devices", "list"))[0]:
            pass
    return found


def test_a_device_is_listed_named_ignored_and_forgotten(box: Box) -> None:
    no_connectors(box)

    async def said(*words: str, code: int = 0) -> str:
        found, output, errors = await box.run("devices", *words)
        assert found == code, output + errors
        return output + errors

    async def main() -> None:
        async with MqttBus(box.url) as bus:
            async with running(box, "ingest"):
                introduce(bus, PLUG)
                found: Device = await until(lambda: device_of(bus, ASSET), "found")
                assert (found.name, found.maker, found.model) == ("pump_plug", "Acme", "TS011F")
                assert found.units == {"power": "W", "temperature": "Cel", "state": ""}
                assert found.settable == ["state"]
                shown = json.loads(await said("list", "--json"))["devices"]
                assert [one["asset"] for one in shown] == [ASSET]
                await said("rename", "pump_plug", "Feed pump")
                assert "°C" in await said("show", "Feed pump")
                assert "no device 'lamp'" in await said("show", "lamp", code=1)
                await said("ignore", "Feed pump")
                async with bus.subscribe("mw/v1/state/ingest", qos=1) as states:
                    report(bus, 1)
                    async with asyncio.timeout(PATIENCE_S):
                        async for batch in states:
                            state: Any = codec.decode(Kind.STATE, batch[-1].payload, time.time_ns())
                            if state.dropped.get("ignored"):
                                break
                        assert state.received == state.processed + state.queued + sum(state.dropped.values())
            async with running(box, "ingest"):
                assert "Feed pump" in await said("list"), "a name outlives a restart"

                async def is_ignored() -> bool:
                    device = await device_of(bus, ASSET)
                    return device is not None and device.ignored and device.available is True

                await until(is_ignored, "and so does a person's word")
                await said("ignore", "--undo", "Feed pump")
                bus.publish("zigbee2mqtt/bridge/devices", b"", qos=1, retain=True)
                await said("forget", "Feed pump")
                assert "No device was found yet" in await said("list")

    asyncio.run(main())


def test_bad_devices_are_counted_contained_and_shown_with_the_remedy(box: Box) -> None:
    no_connectors(box)
    other = PLUG | {"ieee_address": "0x2", "friendly_name": "good"}

    async def main() -> None:
        async with MqttBus(box.url) as bus, running(box, "ingest"):
            introduce(bus, PLUG, other)
            await until(lambda: device_of(bus, "zigbee2mqtt/0x2"), "found")
            async with bus.subscribe("mw/v1/reading/zigbee2mqtt/0x2") as readings:
                bus.publish("zigbee2mqtt/pump_plug", b'{"power": 12')
                bus.publish("zigbee2mqtt/pump_plug", b'{"power": 12}')
                bus.publish("zigbee2mqtt/pump_plug", b'{"power": "much"}')
                for number in range(1000):
                    report(bus, number)
                bus.publish("other/bridge/devices", json.dumps([PLUG]).encode())
                bus.publish("zigbee2mqtt/good", b'{"power": 7}')
                async with asyncio.timeout(PATIENCE_S):
                    batch = await anext(aiter(readings))
                assert codec.decode_reading(batch[0].payload, time.time_ns()).values == {"power": 7.0}

            async def is_told() -> bool:
                device = await device_of(bus, ASSET)
                return device is not None and "id-reused" in device.trouble

            await until(is_told, "the newest trouble is shown")
            code, output, _ = await box.run("devices", "show", ASSET)
            assert code == 0
            assert "give one of them another name" in output
            async with bus.subscribe("mw/v1/state/ingest", qos=1) as states, asyncio.timeout(PATIENCE_S):
                async for batch in states:
                    state: Any = codec.decode(Kind.STATE, batch[-1].payload, time.time_ns())
                    if {"malformed", "type-changed", "flood", "id-reused"} <= state.dropped.keys():
                        break
                assert state.received == state.processed + state.queued + sum(state.dropped.values())

    asyncio.run(main())


def test_a_broker_elsewhere_is_a_connector(box: Box, quiet_box: Box) -> None:
    box.config.write_text(
        box.config.read_text() + f'[connectors.mqtt]\nurl = "{box.url}"\n[devices]\ndiscover = false\n'
    )

    async def main() -> None:
        async with MqttBus(box.url) as bus, running(box, "ingest"):
            introduce(bus, PLUG)
            await until(lambda: device_of(bus, ASSET), "found")

    asyncio.run(main())
