"""Peers in another language, from npm: Sparkplug payloads, a node on MQTT.js, modbus-serial, node-opcua, Node-RED."""

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import forwarding
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.channels import sparkplug as spb_out
from appliance.channels.port import Origin
from appliance.config.secrets import VaultName
from appliance.connectors import dialects, modbus, mqtt, opcua
from appliance.connectors._listening import Listening
from appliance.connectors.dialects.port import Request
from appliance.connectors.port import Connector
from appliance.errors import ChannelError, ConnectorError
from appliance.events.schema import Device, Reading
from appliance.protocols import sparkplug
from appliance.protocols.sparkplug import DataSet, Metric, Payload, Template, Type
from appliance.store.parcels import Lane, Parcel
from tests.conftest import ROOT

PATIENCE_S = 60.0
PEERS = ROOT / "tests" / "npm"
MODULES = Path(os.environ.get("MILLWRIGHT_VENV") or ROOT / ".venv") / "npm" / "node_modules"
# node-opcua keeps the certificates that it makes for itself in its user's home.
ENVIRONMENT = {**os.environ, "NODE_PATH": str(MODULES), "XDG_CONFIG_HOME": str(MODULES.parent / "configuration")}


@pytest.fixture(autouse=True)
def node() -> str:
    found = shutil.which("node")
    if found is None or not MODULES.is_dir():
        pytest.skip("no peers from npm: install Node.js with npm, then tools/setup dev")
    return found


def ran(*words: str) -> str:
    done = subprocess.run(
        ["node", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def peer(script: str, *words: str) -> AsyncIterator[tuple[asyncio.StreamReader, str]]:
    """What it says after the line with which it is ready, and that line."""
    process = await asyncio.create_subprocess_exec(
        "node", str(PEERS / script), *words, env=ENVIRONMENT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            line = ""
            while not line.startswith("ready"):
                line = (await process.stdout.readline()).decode()
                assert line, f"{script} ended"
        yield process.stdout, line.strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def opened(url: str, will: Request | None) -> MqttBus:
    return MqttBus(url, will=Message(will.topic, will.payload, 1, will.stands) if will else None)


async def no_secret(name: VaultName) -> bytes:
    raise KeyError(name.vault)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def until(connector: Connector, **wanted: float) -> dict[str, float]:
    """Read until a reading says so; `wanted` may name values that are exceeded."""
    async with asyncio.timeout(PATIENCE_S):
        async for batch in connector:
            for _, event in batch:
                if isinstance(event, Reading) and all(
                    event.values.get(name, -1) >= value for name, value in wanted.items()
                ):
                    return event.values
    raise AssertionError("the connector has ended")


def test_sparkplug_payloads_of_the_javascript_library_are_read() -> None:
    payload = sparkplug.decode(base64.b64decode(ran(str(PEERS / "sparkplug.js"), "encode")))
    assert (payload.timestamp, payload.seq) == (1750000000123, 7)
    found = {metric.name: metric for metric in payload.metrics}
    values = {name: metric.value for name, metric in found.items() if not isinstance(metric.value, DataSet | Template)}
    assert values == {
        "int8": -8,
        "int16": -1600,
        "int32": -320000,
        "int64": -64000,
        "uint8": 200,
        "uint32": 4000000000,
        "uint64": 64000,
        "float": 1.5,
        "double": 20.25,
        "boolean": True,
        "string": "text é",
        "datetime": 1750000000000,
        "null": None,
        "temperature": 61.5,
    }
    temperature = found["temperature"]
    assert (temperature.alias, temperature.timestamp) == (5, 1750000000001)
    assert temperature.properties == {"engUnit": "°C", "low": -5.5}
    assert found["table"].value == DataSet(("a", "b"), (Type.INT32, Type.STRING), ((1, "x"), (2, "y")))
    rpm = (Metric("rpm", 1480, Type.INT32),)
    assert found["motor"].value == Template(rpm, "Motor", False, "2", {"poles": 4})


def test_sparkplug_payloads_of_ours_are_read_by_the_javascript_library() -> None:
    table = DataSet(("a", "b"), (Type.DOUBLE, Type.BOOLEAN), ((1.5, True),))
    motor = Template((Metric("rpm", 1480, Type.INT32),), "Motor", parameters={"poles": 4})
    metrics = (
        Metric("small", -5, Type.INT16, alias=3, timestamp=99, properties={"engUnit": "bar"}),
        Metric("large", 2**40, Type.INT64),
        Metric("text", "é", Type.STRING),
        Metric("nothing", None, Type.DOUBLE),
        Metric("table", table, Type.DATASET),
        Metric("motor", motor, Type.TEMPLATE),
    )
    ours = base64.b64encode(sparkplug.encode(Payload(metrics, timestamp=1000, seq=1))).decode()
    told = json.loads(ran(str(PEERS / "sparkplug.js"), "decode", ours))
    found: dict[str, Any] = {metric["name"]: metric for metric in told["metrics"]}
    assert (told["timestamp"], told["seq"]) == (1000, 1)
    assert {name: found[name]["value"] for name in ("small", "large", "text", "nothing")} == {
        "small": -5,
        "large": 2**40,
        "text": "é",
        "nothing": None,
    }
    assert (found["small"]["alias"], found["small"]["properties"]["engUnit"]["value"]) == (3, "bar")
    assert found["table"]["value"]["rows"] == [[1.5, True]]
    assert found["motor"]["value"]["metrics"][0]["value"] == 1480


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    """A mosquitto on a port of its own."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest stderr\n")
    process = subprocess.Popen([program, "-c", str(settings)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"running" in line:
            break
    yield port
    process.terminate()
    process.wait()
    process.stderr.close()


def test_a_sparkplug_node_that_was_there_before_us_is_asked_for_its_birth(broker: int) -> None:
    settings = mqtt.Settings(f"mqtt://127.0.0.1:{broker}", dialects=["sparkplug"])

    async def main() -> None:
        async with peer("edge_node.js", str(broker)) as (said, _):
            async with mqtt.create(settings, lambda will: opened(settings.url, will)) as connector:
                values = await until(connector, pressure=22.0)
            assert values.keys() == {"pressure"}
            async with asyncio.timeout(PATIENCE_S):
                assert await said.readline() == b"rebirth\n"
            assert connector.ledger.dropped["no-birth"] >= 1
        async with mqtt.create(settings, lambda will: opened(settings.url, will)) as connector:
            async with peer("edge_node.js", str(broker)):
                await until(connector, pressure=20.5)
            async with asyncio.timeout(PATIENCE_S):
                async for batch in connector:  # it was killed: the broker publishes its will
                    gone = [event for _, event in batch if isinstance(event, Device) and event.available is False]
                    if gone:
                        assert gone[0].units == {"pressure": "bar"}
                        break

    asyncio.run(main())


def test_a_sparkplug_node_that_waits_for_a_host_is_served_by_this_side(broker: int) -> None:
    settings = mqtt.Settings(f"mqtt://127.0.0.1:{broker}")
    spoken = [
        dialects.make(
            "sparkplug", msgspec.convert({"groups": ["plant"], "host": "millwright"}, dialects.declared()["sparkplug"])
        )
    ]

    async def main() -> None:
        async with peer("waiting_node.js", str(broker), "millwright") as (said, _):
            async with Listening(spoken, lambda will: opened(settings.url, will)) as connector:
                await until(connector, pressure=22.0)
                assert connector.ledger.dropped["historical"] >= 1
            async with asyncio.timeout(PATIENCE_S):
                assert await said.readline() == b"host is there\n"
                assert await said.readline() == b"host is away\n"

    asyncio.run(main())


def test_a_sparkplug_host_of_another_maker_hears_what_waited_for_it(
    broker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"mqtt://127.0.0.1:{broker}"
    settings = spb_out.Settings(url=url, group="plant", node="box", host="scada")
    channel = spb_out.create(settings, forwarding.tools(no_secret))
    reading, unit = b'{"at":%d,"values":{"t":%f}}', b'{"name":"pump","units":{"t":"Cel"}}'

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(spb_out, "HOST_S", 0.5)
            with pytest.raises(ChannelError, match="'scada' is away"):
                await channel.__aenter__()
        async with peer("scada_host.js", str(broker), "scada") as (said, _), channel:
            now = time.time_ns()
            parcels = [
                Parcel(Lane.STATE, 1, 0, "device/hall1/pump", unit),
                Parcel(Lane.READING, 1, 0, "reading/hall1/pump", reading % (now - 60 * 10**9, 61.5)),
                Parcel(Lane.READING, 2, 1, "reading/hall1/pump", reading % (now, 62.5)),
            ]
            await channel.deliver(Origin("0" * 12), parcels)
            async with asyncio.timeout(PATIENCE_S):
                told = [json.loads(await said.readline()) for _ in range(4)]
        assert [one["topic"].split("/", 2)[2] for one in told] == [
            "NBIRTH/box",
            *(f"{verb}/box/hall1:pump" for verb in ("DBIRTH", "DDATA", "DDATA")),
        ]
        assert [one["seq"] for one in told] == [0, 1, 2, 3]
        (named,) = told[1]["metrics"]
        assert (named["name"], named["properties"]["engUnit"]["value"]) == ("t", "°C")
        data = [metric for one in told[2:] for metric in one["metrics"]]
        values = [(one["alias"], one["value"], one.get("isHistorical", False)) for one in data]
        assert values == [(named["alias"], 61.5, True), (named["alias"], 62.5, False)]

    asyncio.run(main())


def test_a_slave_of_modbus_serial_is_read_and_written() -> None:
    async def main() -> None:
        port = free_port()
        points = [
            {"name": "inputs", "table": "input", "address": 100},
            {"name": "near", "table": "input", "address": 107},
            {"name": "limit", "address": 4, "type": "float32", "writable": True},
            {"name": "lamp", "table": "coil", "address": 3, "writable": True},
            {"name": "door", "table": "discrete", "address": 5},
        ]
        slave = {"asset": "line1/meter", "host": "127.0.0.1", "port": port, "points": points}
        connector = modbus.create(msgspec.convert({"slaves": [slave], "interval_s": 0.02}, modbus.Settings))
        async with peer("modbus_slave.js", str(port)), connector:
            values = await until(connector, inputs=300, near=321, door=1)
            assert (values["limit"], values["lamp"]) == (0.0, 0.0)
            for point, value in (("limit", 12.5), ("lamp", 1.0)):
                done = connector.command("write", {"asset": "line1/meter", "point": point, "value": value})
                assert done is not None
                await done
            await until(connector, limit=12.5, lamp=1.0)

    asyncio.run(main())


async def nothing(_: VaultName) -> bytes:
    raise ConnectorError("no vault", "Make one.")


def test_a_server_of_node_opcua_is_read_and_written() -> None:
    async def main() -> None:
        port = free_port()
        async with peer("opcua_server.js", str(port)) as (_, ready):
            space = ready.split()[1]
            told = {
                "url": f"opc.tcp://127.0.0.1:{port}",
                "asset": "hall1/press",
                "browse": f"ns={space};s=Press",
                "interval_s": 0.05,
                "nodes": [{"node": f"ns={space};s=Setpoint", "name": "setpoint", "writable": True, "max": 80}],
            }
            async with opcua.create(msgspec.convert(told, opcua.Settings), nothing) as connector:
                await until(connector, Force=12.0, setpoint=7.0)
                done = connector.command("write", {"asset": "hall1/press", "point": "setpoint", "value": 42.5})
                assert done is not None
                await done
                await until(connector, setpoint=42.5)

    asyncio.run(main())


FLOW = [
    {"id": "flow", "type": "tab", "label": "oven"},
    {"id": "tick", "type": "inject", "z": "flow", "repeat": "0.05", "once": True, "payload": "", "wires": [["read"]]},
    {"id": "read", "type": "function", "z": "flow", "func": "return {payload: {t: 61.5}};", "wires": [["told"]]},
    {"id": "told", "type": "mqtt out", "z": "flow", "topic": "nodered/oven", "broker": "broker", "wires": []},
    {"id": "heard", "type": "mqtt in", "z": "flow", "topic": "mw/v1/reading/#", "qos": "0", "datatype": "json",
     "broker": "broker", "inputs": 0, "wires": [["echo"]]},
    {"id": "echo", "type": "function", "z": "flow", "func": "return {topic: 'nodered/echo', payload: msg.payload};",
     "wires": [["back"]]},
    {"id": "back", "type": "mqtt out", "z": "flow", "topic": "", "broker": "broker", "wires": []},
]  # fmt: skip
SETTINGS = """module.exports = {
    flowFile: "flows.json", credentialSecret: false, httpAdminRoot: false, httpNodeRoot: false, uiHost: "127.0.0.1",
    telemetry: {enabled: false, updateNotification: false}, logging: {console: {level: "warn"}},
};"""


@asynccontextmanager
async def node_red(folder: Path, port: int) -> AsyncIterator[None]:
    """A flow that publishes an oven's temperature and gives back what it hears of readings."""
    place = {"id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(port), "autoConnect": True}
    (folder / "flows.json").write_text(json.dumps([*FLOW, place]))
    (folder / "settings.js").write_text(SETTINGS)
    words = [str(MODULES / "node-red" / "red.js"), "--userDir", str(folder), "--settings", str(folder / "settings.js")]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec("node", *words, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


def test_node_red_is_heard_and_hears(broker: int, tmp_path: Path) -> None:
    rule = {"topic": "nodered/oven", "device": "oven", "units": {"t": "°C"}}
    dialect = dialects.make("mapping", msgspec.convert({"rules": [rule]}, dialects.declared()["mapping"]))

    async def main() -> None:
        async with node_red(tmp_path, broker), MqttBus(f"mqtt://127.0.0.1:{broker}") as bus:
            async with Listening([dialect], lambda will: opened(f"mqtt://127.0.0.1:{broker}", will)) as connector:
                assert await until(connector, t=61.5) == {"t": 61.5}
            async with bus.subscribe("nodered/echo") as echoes, asyncio.timeout(PATIENCE_S):
                bus.publish("mw/v1/reading/line1/pump", b'{"temperature": 61.25}')
                batch = await anext(aiter(echoes))
                assert json.loads(batch[0].payload) == {"temperature": 61.25}

    asyncio.run(main())
