"""What every connector keeps to, whatever its source. A new connector has an entry in SETTINGS."""

import asyncio
import re
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import connectors, plugins
from appliance.connectors._pace import Leaping
from appliance.connectors.port import Arrival, Connector
from appliance.events import codec, topics
from appliance.events.schema import Block, Device, Kind, Reading
from tests.sources import MAKERS

NAMES = plugins.names("appliance.connectors")
KINDS: dict[type, Kind] = {Reading: Kind.READING, Block: Kind.BLOCK, Device: Kind.DEVICE}
ENOUGH = 30


def recording(folder: Path) -> dict[str, Any]:
    path = folder / "pump.csv"
    lines = [f"2024-01-01T00:00:{second:02};{20 + second}" for second in range(60)]
    path.write_text("\n".join(["time;temperature", *lines, "2024-01-01T00:01:00;broken", ""]))
    return {"file": str(path)}


def growing(folder: Path) -> dict[str, Any]:
    recording(folder)
    return {"folder": str(folder), "asset": "lab", "start": "beginning"}


SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "files": growing,
    "host": lambda _: {},
    "replay": recording,
    "simulator": lambda _: {},
}
ENDING = {"replay"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    assert request.param in SETTINGS or request.param in MAKERS, f"give {request.param} an entry in SETTINGS or MAKERS"
    return str(request.param)


@pytest.fixture
def connector(name: str, tmp_path: Path) -> Connector:
    if name in MAKERS:
        return MAKERS[name](tmp_path)
    plugin = plugins.load("appliance.connectors", name)
    made: Connector = plugin.create(msgspec.convert(SETTINGS[name](tmp_path), plugin.Settings), Leaping().time())
    return made


async def read(connector: Connector, enough: int = ENOUGH) -> list[list[Arrival]]:
    batches: list[list[Arrival]] = []
    async with connector:
        async for batch in connector:
            batches.append(batch)
            if sum(map(len, batches)) >= enough:
                break
    return batches


def flat(batches: list[list[Arrival]]) -> list[Arrival]:
    return [arrival for batch in batches for arrival in batch]


def test_its_settings_say_what_they_mean(name: str) -> None:
    settings = connectors.declared()[name]
    assert settings.__doc__
    for field in msgspec.inspect.type_info(settings).fields:
        assert isinstance(field.type, msgspec.inspect.Metadata), f"{field.name} has no description"
        assert (field.type.extra_json_schema or {}).get("description"), f"{field.name} has no description"


def test_its_docstring_shows_a_configuration_that_is_valid(name: str) -> None:
    plugin = plugins.load("appliance.connectors", name)
    shown = re.search(r"(?m)^(    \[\[?connectors\..*(?:\n(?:    (?!curl).*)?)*)", plugin.__doc__ or "")
    assert shown, "the docstring shows no [connectors.NAME]"
    tables = tomllib.loads(textwrap.dedent(shown[1]))["connectors"]
    assert list(tables) == [name]
    for table in tables[name] if isinstance(tables[name], list) else [tables[name]]:
        msgspec.convert(table, plugin.Settings)


def test_what_it_yields_can_be_published(connector: Connector) -> None:
    arrivals = flat(asyncio.run(read(connector)))
    assert len(arrivals) >= ENOUGH
    for asset, event in arrivals:
        kind = KINDS[type(event)]
        assert topics.parse(topics.topic(kind, asset)).path == asset
        assert codec.decode(kind, codec.encode(event), event.at) == event
        codec.check_points(list(event.units if isinstance(event, Device) else event.values))


def test_batches_are_not_empty_and_in_order_of_time(connector: Connector) -> None:
    batches = asyncio.run(read(connector))
    assert all(batches)
    times = [arrival.event.at for arrival in flat(batches) if not isinstance(arrival.event, Device)]
    assert times == sorted(times)
    assert len(set(times)) == len(times), "two readings of one asset at the same time are one"


def test_its_books_balance(name: str, connector: Connector) -> None:
    arrivals = flat(asyncio.run(read(connector, 10**6 if name in ENDING else ENOUGH)))
    ledger = connector.ledger
    assert ledger.processed == len(arrivals)
    assert ledger.received == ledger.processed + sum(ledger.dropped.values())
    assert ledger.queued == 0


def test_it_can_be_opened_again(connector: Connector) -> None:
    async def main() -> None:
        first, second = await read(connector, 3), await read(connector, 3)
        assert flat(first)[0].asset == flat(second)[0].asset
        assert flat(second)[-1].event.at > flat(first)[-1].event.at

    asyncio.run(main())


def test_it_stops_when_it_is_cancelled(connector: Connector) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def forever() -> None:
            while True:
                async with connector:
                    async for _ in connector:
                        began.set()

        task = asyncio.create_task(forever())
        await asyncio.wait_for(began.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)

    asyncio.run(main())
