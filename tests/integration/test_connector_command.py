"""`millwright connector`: what is configured, and what it says on the wire."""

import asyncio

from appliance.bus.mqtt import MqttBus
from tests.integration.conftest import Box
from tests.integration.test_discovery import PLUG, introduce
from tests.integration.test_modbus import slave


def test_connectors_are_listed_and_tested(box: Box) -> None:
    async def main() -> None:
        async with slave() as port, MqttBus(box.url) as bus:
            box.config.write_text(
                box.config.read_text()
                + "[connectors.host]\n[[connectors.modbus]]\n[[connectors.modbus.slaves]]\n"
                + f'asset = "line1/meter"\nhost = "127.0.0.1"\nport = {port}\n'
                + 'points = [{name = "voltage", table = "input", address = 0, type = "float32", unit = "V"}]\n'
                + '[[connectors.modbus]]\n[[connectors.modbus.slaves]]\nasset = "line1/other"\nhost = "127.0.0.1"\n'
                + 'port = 1\npoints = [{name = "p", address = 0}]\n'
            )
            code, output, errors = await box.run("connector", "list")
            assert code == 0, errors
            assert output.split() == ["host", "modbus", "modbus-2", "discovery"]
            code, output, _ = await box.run("connector", "test", "modbus")
            assert code == 0
            assert "-> 00 01 00 00 00 06 01 04 00 00 00 02" in output
            assert "voltage = 230.5 V" in output
            code, output, _ = await box.run("connector", "test", "modbus-2")
            assert "127.0.0.1:1 cannot be opened" in output
            code, output, errors = await box.run("connector", "test", "modbsu")
            assert code == 2
            assert "host, modbus, modbus-2, discovery" in errors
            introduce(bus, PLUG)
            code, output, _ = await box.run("connector", "test", "discovery", "--seconds", "1")
            assert code == 0
            assert "device 'pump_plug' Acme TS011F, 3 points" in output

    asyncio.run(main())


def test_where_nothing_comes_it_says_so(box: Box) -> None:
    box.config.write_text(box.config.read_text() + "[connectors]\n")

    async def main() -> None:
        code, output, _ = await box.run("connector", "test", "discovery", "--seconds", "0.2")
        assert code == 1
        assert "Nothing came within 0.2 s." in output

    asyncio.run(main())
