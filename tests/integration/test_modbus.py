"""Modbus against peers: pymodbus's own server, recorded slaves, a serial line, and slaves that are dead."""

import asyncio
import csv
import shutil
import struct
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import ModbusSerialServer, ModbusTcpServer

from appliance.connectors import _modbus_line, modbus
from appliance.connectors._modbus_line import RefusalError
from appliance.connectors._pace import Leaping
from appliance.connectors._registers import Block, Point
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError
from appliance.events.schema import Device, Reading
from tests import captures

PATIENCE_S = 30.0
FLOAT = struct.unpack(">2H", struct.pack(">f", 230.5))


def registers() -> ModbusServerContext:
    block = [0] * 200
    block[0:2], block[10], block[20] = FLOAT, 605, 0b1000
    values = {name: ModbusSequentialDataBlock(1, block[:]) for name in ("ir", "hr")}
    bits = {name: ModbusSequentialDataBlock(1, [True, False] * 20) for name in ("di", "co")}
    return ModbusServerContext(devices={1: ModbusDeviceContext(**values, **bits)}, single=False)


@asynccontextmanager
async def slave() -> AsyncIterator[int]:
    """Its port."""
    server = ModbusTcpServer(registers(), address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    listener = server.transport
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        await server.shutdown()
        listener.close()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """A TCP server; its port."""
    ended: list[asyncio.Event] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        ended.append(end := asyncio.Event())
        try:
            await answer(reader, writer)
        finally:
            writer.close()
            end.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        for end in ended:
            await end.wait()


def mute() -> AbstractAsyncContextManager[int]:
    """Takes connections and never says anything."""

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass

    return serving(listen)


POINTS = [
    {"name": "voltage", "table": "input", "address": 0, "type": "float32", "unit": "V"},
    {"name": "power", "table": "input", "address": 10, "type": "uint16", "scale": 0.1, "unit": "kW"},
    {"name": "fault", "table": "holding", "address": 20, "bit": 3},
    {"name": "limit", "table": "holding", "address": 30, "type": "int16", "writable": True, "min": 0, "max": 32},
    {"name": "door", "table": "discrete", "address": 0},
    {"name": "lamp", "table": "coil", "address": 1, "writable": True},
]


def made(*slaves: dict[str, Any], **settings: Any) -> modbus.Modbus:
    told = {"slaves": [{"asset": f"line1/m{index}"} | one for index, one in enumerate(slaves)]} | settings
    return modbus.create(msgspec.convert(told, modbus.Settings), Leaping().time())


async def readings(connector: modbus.Modbus, enough: int) -> list[Arrival]:
    found: list[Arrival] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in connector:
            found += batch
            if sum(isinstance(one.event, Reading) for one in found) >= enough:
                break
    return found


def devices(arrivals: list[Arrival]) -> dict[str, Device]:
    return {asset: event for asset, event in arrivals if isinstance(event, Device)}


def test_points_are_read_from_a_slave_and_written_to_it() -> None:
    async def main() -> None:
        async with slave() as port:
            here = {"host": "127.0.0.1", "port": port, "points": POINTS, "maker": "Acme"}
            async with made(here) as connector:
                found = await readings(connector, 2)
                values = found[-1].event
                assert isinstance(values, Reading)
                assert values.values == {
                    "voltage": 230.5,
                    "power": pytest.approx(60.5),
                    "fault": 1.0,
                    "limit": 0.0,
                    "door": 1.0,
                    "lamp": 0.0,
                }
                device = devices(found)["line1/m0"]
                assert device.units == {
                    "voltage": "V",
                    "power": "kW",
                    "fault": "",
                    "limit": "",
                    "door": "",
                    "lamp": "",
                }
                assert device.settable == ["limit", "lamp"]
                for point, value in (("limit", 16.0), ("lamp", 1.0)):
                    done = connector.command("write", {"asset": "line1/m0", "point": point, "value": value})
                    assert done is not None
                    await done
                values = (await readings(connector, 3))[-1].event
                assert isinstance(values, Reading)
                assert (values.values["limit"], values.values["lamp"]) == (16.0, 1.0)
                for point, value, wrong in (("limit", 40, "limits"), ("voltage", 1, "writable"), ("x", 1, "voltage")):
                    refused = connector.command("write", {"asset": "line1/m0", "point": point, "value": value})
                    assert refused is not None
                    with pytest.raises(ConnectorError) as error:
                        await refused
                    assert wrong in error.value.remedy
                assert connector.command("write", {"asset": "other"}) is None

    asyncio.run(main())


def test_a_register_that_is_refused_costs_only_itself() -> None:
    async def main() -> None:
        async with slave() as port:
            points = [
                {"name": "good", "address": 190},
                {"name": "none", "address": 205},
                {"name": "also", "address": 195},
            ]
            async with made({"host": "127.0.0.1", "port": port, "points": points, "max_gap": 20}) as connector:
                found = await readings(connector, 3)
                values = found[-1].event
                assert isinstance(values, Reading)
                assert values.values == {"good": 0.0, "also": 0.0}
                assert "'none'" in devices(found)["line1/m0"].trouble
                assert "illegal data address" in devices(found)["line1/m0"].trouble
                assert connector.ledger.dropped == {}

    asyncio.run(main())


def test_a_dead_slave_is_told_and_the_others_keep_their_pace() -> None:
    async def main() -> None:
        async with slave() as port, mute() as dead:
            here = {"host": "127.0.0.1", "port": port, "points": POINTS}
            gone = here | {"port": dead}
            absent = here | {"unit": 9}  # behind the same gateway as the first
            connector = made(here, gone, absent, timeout_s=0.05, probe_timeout_s=0.02)
            found: list[Arrival] = []
            async with connector, asyncio.timeout(PATIENCE_S):
                async for batch in connector:
                    found += batch
                    told = devices(found)
                    if len(told) == 3 and sum(not one.available for one in told.values()) == 2:
                        break
                found += await readings(connector, 200)
            assert {asset for asset, event in found if isinstance(event, Reading)} == {"line1/m0"}
            assert told["line1/m0"].available
            assert "->" in told["line1/m1"].trouble
            assert "gateway" not in told["line1/m2"].trouble
            # Of a dead one there are as many questions as its rests allow; each reading of the other took a second.
            assert 4 <= connector.ledger.dropped["no-answer"] <= 40
            assert connector.ledger.queued == 0

    asyncio.run(main())


def test_a_slave_that_comes_back_is_welcome() -> None:
    async def main() -> None:
        async with slave() as port:
            pass  # its port is free now
        connector = made({"host": "127.0.0.1", "port": port, "points": POINTS}, timeout_s=0.1)
        async with connector, asyncio.timeout(PATIENCE_S):
            async for batch in connector:
                if any(isinstance(event, Device) and not event.available for _, event in batch):
                    break
            server = ModbusTcpServer(registers(), address=("127.0.0.1", port))
            await server.serve_forever(background=True)
            listener = server.transport
            found = await readings(connector, 1)
            assert devices(found)["line1/m0"].available
            await server.shutdown()
            listener.close()

    asyncio.run(main())


def test_the_wire_is_shown() -> None:
    async def main() -> list[str]:
        async with slave() as port, mute() as dead:
            here = {"host": "127.0.0.1", "port": port, "points": POINTS}
            connector = made(here, here | {"port": dead}, timeout_s=0.05)
            return [line async for line in connector.diagnose()]

    told = "\n".join(asyncio.run(main()))
    assert "input 0, 11 values for 2 points" in told
    assert "-> 00 01 00 00 00 06 01" in told
    assert "voltage = 230.5 V" in told
    assert "no answer within 0.05 s" in told


# Recorded slaves


def recorded(answers: dict[tuple[int, int, int, int], deque[bytes]]) -> AbstractAsyncContextManager[int]:
    """A slave that answers as another one did: by unit, function, address and count."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while header := await reader.read(7):
            transaction, _, length, unit = struct.unpack(">HHHB", header)
            function, address, count = struct.unpack(">BHH", await reader.readexactly(length - 1))
            pdu = answers[unit, function, address, count].popleft()
            writer.write(struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu)

    return serving(answer)


def asked(row: dict[str, str], answers: Iterator[captures.Answer]) -> tuple[tuple[int, int, int, int], bytes]:
    """What was asked in a row of the reference, and the answer's bytes in the capture."""
    at, unit, function = float(row["time"]), int(row["unit"]), int(row["function"])
    found = next(one for one in answers if abs(one.at - at) < 1e-5 and (one.unit, one.pdu[0]) == (unit, function))
    return (unit, function, int(row["request_address"]), int(row["request_count_or_value"])), found.pdu


TABLES = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}


@pytest.mark.parametrize(
    ("name", "least"), [("iti_modbus_test", 1000), ("icsnpp_modbus_example", 8), ("zeek_modbusSmall", 8)]
)
def test_captures_of_real_slaves_give_the_reference_values(name: str, least: int, shared_data: Path) -> None:
    folder = shared_data / "protocols"
    with (folder / "modbus_decoded" / f"{name}.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["function"]) in TABLES and row["request_address"]]
    assert len(rows) >= least

    async def main() -> None:
        answers = captures.modbus_answers(folder / "modbus" / f"{name}.pcap")
        kept: dict[tuple[int, int, int, int], deque[bytes]] = {}
        questions = []
        for row in rows:
            question, pdu = asked(row, answers)
            kept.setdefault(question, deque()).append(pdu)
            questions.append(question)
        async with recorded(kept) as port:
            line = _modbus_line.tcp("127.0.0.1", port, 5.0, "")
            for row, (unit, function, address, count) in zip(rows, questions, strict=True):
                values = await line.read(unit, Block(TABLES[function], address, count, ()))
                assert values == reference(row["response"], count), row
            line.close()

    asyncio.run(main())


def reference(text: str, count: int) -> list[int]:
    """`230 0 17`, or `bits e9`."""
    if not text.startswith("bits "):
        return [int(word) for word in text.split()]
    packed = bytes.fromhex(text.removeprefix("bits "))
    return [packed[bit // 8] >> bit % 8 & 1 for bit in range(count)]


def test_exceptions_of_a_capture_are_told_by_name(shared_data: Path) -> None:
    answers = [
        one
        for one in captures.modbus_answers(shared_data / "protocols/modbus/icsnpp_modbus_example.pcap")
        if one.pdu[0] > 128
    ]
    assert answers

    async def main() -> None:
        async with recorded({(1, 3, 600, 10): deque(one.pdu for one in answers)}) as port:
            line = _modbus_line.tcp("127.0.0.1", port, 5.0, "")
            with pytest.raises(RefusalError, match="illegal data address"):
                await line.read(1, Block("holding", 600, 10, ()))
            line.close()

    asyncio.run(main())


# A serial line


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two ends of a serial line."""
    program = shutil.which("socat")
    if program is None:
        pytest.skip("socat is not installed")
    ends = str(tmp_path / "a"), str(tmp_path / "b")
    process = subprocess.Popen(
        [program, "-d", "-d", *(f"pty,raw,echo=0,link={end}" for end in ends)], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"starting data transfer" in line:
            break
    yield ends
    process.terminate()
    process.wait()
    process.stderr.close()


def test_a_serial_line_with_a_slave_that_is_dead(pair: tuple[str, str]) -> None:
    async def main() -> None:
        server = ModbusSerialServer(registers(), port=pair[0], baudrate=115200, ignore_missing_devices=True)
        await server.serve_forever(background=True)
        here = {"serial": pair[1], "baud": 115200, "parity": "N", "points": POINTS[:2]}
        connector = made(here, here | {"unit": 7}, timeout_s=0.3, probe_timeout_s=0.1)
        async with connector:
            found = await readings(connector, 10)
        assert {asset for asset, event in found if isinstance(event, Reading)} == {"line1/m0"}
        assert devices(found)["line1/m0"].available
        assert connector.ledger.dropped["no-answer"] >= 1
        await server.shutdown()

    asyncio.run(main())


# Configuration


def test_a_map_is_shared_by_many(tmp_path: Path) -> None:
    (tmp_path / "d7.toml").write_text(
        'maker = "Acme"\nmodel = "D7"\n[[points]]\nname = "speed"\naddress = 3\nunit = "rpm"\n'
    )
    connector = made({"host": "x", "map": str(tmp_path / "d7.toml"), "points": [{"name": "own", "address": 9}]})
    (one,) = connector._slaves
    assert (one.maker, one.model, [point.name for point in one.points]) == ("Acme", "D7", ["speed", "own"])


@pytest.mark.parametrize(
    ("slaves", "wrong"),
    [
        ([{"points": POINTS}], "host or on a serial line"),
        ([{"host": "x", "serial": "/dev/y", "points": POINTS}], "host or on a serial line"),
        ([{"host": "x"}], "names no points"),
        ([{"host": "x", "points": POINTS + POINTS[:1]}], "names a point twice"),
        ([{"host": "x", "map": "nowhere.toml"}], "cannot be read"),
        ([{"host": "x", "points": POINTS, "asset": "a"}, {"host": "y", "points": POINTS, "asset": "a"}], "two slaves"),
        (
            [{"host": "x", "points": [{"name": "p", "address": 1, "table": "input", "writable": True}]}],
            "nobody can write",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(slaves: list[dict[str, Any]], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        made(*slaves)


def test_points_know_their_width() -> None:
    assert [Point("p", 0, type=kind).width for kind in ("uint16", "float32", "int64")] == [1, 2, 4]
