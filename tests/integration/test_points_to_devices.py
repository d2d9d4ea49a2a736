"""A person sets a declared point, and the device behind it is sent it; what is not declared is not set."""

import asyncio
import time

from appliance.bus.mqtt import MqttBus
from appliance.events import codec
from tests.integration.conftest import PATIENCE_S, Box
from tests.integration.test_discovery import ASSET, PLUG, device_of, introduce, running, until
from tests.integration.test_modbus import slave
from tests.integration.test_opcua import free_port, press


def test_from_a_persons_word_to_the_wire(box: Box) -> None:
    async def main() -> None:
        async with slave() as port, press(opcua := free_port()) as nodes, MqttBus(box.url) as bus:
            box.config.write_text(
                box.config.read_text()
                + f'[[points]]\nasset = "{ASSET}"\npoint = "state"\ntype = "switch"\nmin_interval_s = 0\n'
                + '[[points]]\nasset = "line1/meter"\npoint = "limit"\ntype = "number"\nmax = 100\nmin_interval_s = 0\n'
                + '[[points]]\nasset = "hall1/press"\npoint = "setpoint"\ntype = "number"\nmax = 100\n'
                + "min_interval_s = 0\n"
                + f'[[connectors.opcua]]\nurl = "opc.tcp://127.0.0.1:{opcua}"\nasset = "hall1/press"\n'
                + 'nodes = [{node = "ns=2;s=Setpoint", name = "setpoint", writable = true, min = 0, max = 50}]\n'
                + "[[connectors.modbus]]\n[[connectors.modbus.slaves]]\n"
                + f'asset = "line1/meter"\nhost = "127.0.0.1"\nport = {port}\n'
                + 'points = [{name = "limit", address = 30, type = "int16", writable = true, min = 0, max = 32}]\n'
            )

            async def said(*words: str, code: int = 0) -> str:
                found, output, errors = await box.run("points", *words)
                assert found == code, output + errors
                return output + errors

            async with running(box, "ingest"), bus.subscribe("zigbee2mqtt/+/set") as orders:
                introduce(bus, PLUG)
                await until(lambda: device_of(bus, ASSET), "the plug is found")
                await said("set", ASSET, "state", "on")
                async with asyncio.timeout(PATIENCE_S):
                    batch = await anext(aiter(orders))
                assert (batch[0].topic, batch[0].payload) == ("zigbee2mqtt/pump_plug/set", b'{"state":"ON"}')
                assert "power" in await said("set", ASSET, "power", "5", code=1)
                await said("set", "line1/meter", "limit", "16")
                async with bus.subscribe("mw/v1/reading/line1/meter") as readings, asyncio.timeout(PATIENCE_S):
                    async for batch in readings:
                        if codec.decode_reading(batch[-1].payload, time.time_ns()).values == {"limit": 16.0}:
                            break
                await said("set", "hall1/press", "setpoint", "42")
                async with asyncio.timeout(PATIENCE_S):
                    while await nodes["setpoint"].read_value() != 42:
                        pass
                assert "limits" in await said("set", "hall1/press", "setpoint", "60", code=1)
                # The connector keeps its own limits, whatever is declared here.
                assert "limits are 0" in await said("set", "line1/meter", "limit", "60", code=1)

    asyncio.run(main())
