"""A serial line, as a pair of socat's: frames, requests, a plug that is pulled and put back."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.connectors import serial
from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError
from appliance.events.schema import Device, Reading

PATIENCE_S = 30.0


@contextmanager
def pair(folder: Path) -> Iterator[tuple[str, int]]:
    """The path of one end, and the other end, open."""
    program = shutil.which("socat")
    if program is None:
        pytest.skip("socat is not installed")
    ours, theirs = str(folder / "scale"), str(folder / "far")
    process = subprocess.Popen(
        [program, "-d", "-d", *(f"pty,raw,echo=0,link={end}" for end in (ours, theirs))], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"starting data transfer" in line:
            break
    far = os.open(theirs, os.O_RDWR | os.O_NOCTTY)
    try:
        yield ours, far
    finally:
        os.close(far)
        process.terminate()
        process.wait()
        process.stderr.close()


def made(port: str, **settings: Any) -> serial.SerialLine:
    return serial.create(msgspec.convert({"port": port, "asset": "hall1/scale"} | settings, serial.Settings))


async def readings(connector: serial.SerialLine, enough: int) -> list[Arrival]:
    found: list[Arrival] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in connector:
            found += batch
            if sum(isinstance(one.event, Reading) for one in found) >= enough:
                break
    return found


def test_lines_are_readings(tmp_path: Path) -> None:
    async def main() -> None:
        with pair(tmp_path) as (port, far):
            fields = [{"name": "weight", "unit": "kg"}]
            async with made(port, framing={"fields": fields}) as connector:
                os.write(far, b"61.2\r\nERR\r\n62.5\r\n")
                found = await readings(connector, 2)
            told = [event.values for _, event in found if isinstance(event, Reading)]
            assert told == [{"weight": 61.2}, {"weight": 62.5}]
            assert [event.units for _, event in found if isinstance(event, Device)] == [{"weight": "kg"}]
            assert connector.ledger.dropped == {"empty": 1}
            assert connector.ledger.queued == 0

    asyncio.run(main())


def test_a_device_that_wants_to_be_asked(tmp_path: Path) -> None:
    async def main() -> None:
        with pair(tmp_path) as (port, far):
            loop = asyncio.get_running_loop()
            loop.add_reader(far, lambda: os.write(far, b"T=21.5\n" * os.read(far, 100).count(b"?T\r")))
            async with made(port, request="?T\r", interval_s=0.01) as connector:
                found = await readings(connector, 3)
            loop.remove_reader(far)
            assert all(event.values == {"T": 21.5} for _, event in found if isinstance(event, Reading))

    asyncio.run(main())


def test_a_plug_that_is_pulled_and_put_back(tmp_path: Path) -> None:
    async def main() -> None:
        connector = made(str(tmp_path / "scale"))
        with pair(tmp_path) as (_, far):
            await connector.__aenter__()
            os.write(far, b"1\n")
            await readings(connector, 1)
        with pytest.raises(ConnectorError, match="is gone") as error:
            await readings(connector, 1)
        assert "again by itself" in error.value.remedy
        await connector.__aexit__(None, None, None)
        with pytest.raises(ConnectorError, match="cannot be opened"):
            await connector.__aenter__()
        with pair(tmp_path) as (_, far):
            async with connector:
                os.write(far, b"2\n")
                assert len(await readings(connector, 1)) == 2

    asyncio.run(main())


def test_what_is_on_the_wire_is_shown(tmp_path: Path) -> None:
    async def main() -> list[str]:
        with pair(tmp_path) as (port, far):
            told = []
            async for line in made(port).diagnose():
                if not told:
                    asyncio.get_running_loop().call_soon(os.write, far, b"61.2\n")
                told.append(line)
                if "value0" in line:
                    break
            return told

    told = "\n".join(asyncio.run(main()))
    assert "36 31 2e 32 0a" in told
    assert "value0 = 61.2" in told
