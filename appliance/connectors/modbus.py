"""Modbus TCP and RTU: meters, drives and PLCs, by register maps.

    [connectors.modbus]
    interval_s = 1.0
    timeout_s = 0.5

    [[connectors.modbus.slaves]]
    host = "192.0.2.10"                       # or serial = "/dev/serial/by-id/usb-FTDI_...", baud = 19200
    unit = 1
    asset = "hall1/meter"
    maker = "Acme"
    points = [
        {name = "voltage", table = "input", address = 0, type = "float32", unit = "V"},
        {name = "energy", table = "input", address = 342, type = "uint32", scale = 0.01, unit = "kWh"},
        {name = "limit", address = 10, type = "int16", scale = 0.1, unit = "A", writable = true, min = 0, max = 32},
        {name = "fault", address = 11, bit = 3},
    ]

    [[connectors.modbus.slaves]]
    host = "192.0.2.11"
    asset = "hall1/drive"
    map = "drives/acme-d7.toml"               # a file with maker, model and [[points]]

Points of a slave are read in the fewest requests. Slaves at one host and port, or on one serial line, take turns; a
slave that does not answer is asked ever more rarely, so that the others keep their pace. Nothing is ever written but to
points that are declared `writable`, within their limits.
"""

import tomllib
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from appliance.connectors import _modbus_line, _registers
from appliance.connectors._modbus_line import Line, RefusalError
from appliance.connectors._names import checked
from appliance.connectors._pace import REAL, Time
from appliance.connectors._registers import Block, Point
from appliance.connectors._streams import Streams
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError, EventError
from appliance.events.ledger import Ledger
from appliance.events.schema import Device, Reading
from appliance.protocols import units

MAX_SLAVES, MAX_POINTS = 1000, 1000
LONGEST_REST_S = 60.0  # of a slave that does not answer
PATIENT = 2  # failures in a row after which it counts as gone


class Slave(Struct, frozen=True, forbid_unknown_fields=True):
    """One device: where it is, and what it has."""

    asset: Annotated[str, Meta(min_length=1, description="The asset its readings belong to.")]
    host: Annotated[str, Meta(description="Its address, or that of its gateway.")] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="Its TCP port.")] = 502
    serial: Annotated[str, Meta(description="The serial line instead, best as /dev/serial/by-id/...")] = ""
    baud: Annotated[int, Meta(ge=300, le=4_000_000, description="Of the serial line, in bit/s.")] = 19_200
    parity: Annotated[Literal["N", "E", "O"], Meta(description="Of the serial line.")] = "E"
    stop_bits: Annotated[int, Meta(ge=1, le=2, description="Of the serial line.")] = 1
    framing: Annotated[
        Literal["", "tcp", "rtu", "ascii"], Meta(description="Empty: tcp at a host, rtu on a serial line.")
    ] = ""
    unit: Annotated[int, Meta(ge=0, le=255, description="Its unit id.")] = 1
    name: Annotated[str, Meta(max_length=100, description="What people call it; empty: its asset.")] = ""
    maker: Annotated[str, Meta(max_length=100, description="Who made it.")] = ""
    model: Annotated[str, Meta(max_length=100, description="What it is.")] = ""
    map: Annotated[str, Meta(description="A file of points; see the docstring.")] = ""
    points: Annotated[list[Point], Meta(max_length=MAX_POINTS, description="Its points, after those of `map`.")] = (
        field(default_factory=list)
    )
    interval_s: Annotated[float, Meta(ge=0, le=86_400, description="Between two readings; 0: the connector's.")] = 0.0
    max_gap: Annotated[int, Meta(ge=0, le=124, description="Unused registers that are read along.")] = 8
    max_count: Annotated[int, Meta(ge=1, le=125, description="Registers that it hands out at once.")] = 125


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Slaves of Modbus TCP and RTU."""

    slaves: Annotated[list[Slave], Meta(min_length=1, max_length=MAX_SLAVES, description="One table each.")]
    interval_s: Annotated[float, Meta(ge=0.01, le=86_400, description="Between two readings of a slave.")] = 1.0
    timeout_s: Annotated[float, Meta(ge=0.01, le=60, description="For an answer.")] = 1.0
    probe_timeout_s: Annotated[
        float, Meta(ge=0.01, le=60, description="For an answer of a slave that gave none the last times.")
    ] = 0.3


class _Map(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of points."""

    points: list[Point]
    maker: str = ""
    model: str = ""


def create(settings: Settings, time: Time = REAL) -> "Modbus":
    return Modbus(settings, time)


class _Station:
    """A slave that is polled."""

    def __init__(self, settings: Slave, interval_s: float, due_s: float) -> None:
        self.settings, self.interval_s, self.due_s = settings, settings.interval_s or interval_s, due_s
        self.blocks = _registers.plan(settings.points, settings.max_gap, settings.max_count)
        self.failures = 0
        self.refused: dict[str, str] = {}  # point -> why
        self.told: Device | None = None

    @property
    def is_gone(self) -> bool:
        return self.failures >= PATIENT

    def next_due(self, now_s: float) -> None:
        """Even ticks while it answers; ever longer rests while it does not."""
        if self.is_gone:
            self.due_s = now_s + min(LONGEST_REST_S, self.interval_s * 2.0 ** min(self.failures, 16))
        else:
            self.due_s = max(self.due_s + self.interval_s, now_s)

    def facts(self, now: int, trouble: str = "") -> Device:
        settings = self.settings
        return Device(
            now,
            settings.name or settings.asset,
            "modbus",
            f"{settings.serial or f'{settings.host}:{settings.port}'} unit {settings.unit}",
            settings.maker,
            settings.model,
            units={point.name: units.code(point.unit) for point in settings.points},
            settable=[point.name for point in settings.points if point.writable],
            available=not self.is_gone,
            trouble=trouble or "; ".join(self.refused.values())[:400],
        )


class Modbus:
    is_patient = True

    def __init__(self, settings: Settings, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._time = settings, time
        self._slaves = [_complete(slave) for slave in settings.slaves]
        assets = [slave.asset for slave in self._slaves]
        if twice := next((asset for asset in assets if assets.count(asset) > 1), ""):
            raise ConfigError(f"two slaves have the asset '{twice}'", "Set 'asset' of one of them to another.")
        self._streams = Streams(self.ledger)
        self._lines: dict[tuple[object, ...], Line] = {}
        self._stamped = 0

    def assets(self) -> list[str]:
        return [slave.asset for slave in self._slaves]

    async def __aenter__(self) -> Self:
        self._streams = Streams(self.ledger)
        begin_s = self._time.timer()
        by_line: dict[tuple[object, ...], list[_Station]] = {}
        for slave in self._slaves:
            station = _Station(slave, self._settings.interval_s, begin_s)
            by_line.setdefault(_place(slave), []).append(station)
        for place, stations in by_line.items():
            line = self._lines[place] = open_line(stations[0].settings, self._settings.timeout_s)
            self._streams.start(self._keep(line, stations), f"modbus {line.place}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._streams.close()
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        return self._streams.read()

    def command(self, verb: str, args: dict[str, Any]) -> Awaitable[dict[str, Any]] | None:
        """`write` with asset, point and value."""
        slave = next((one for one in self._slaves if one.asset == args.get("asset")), None)
        if verb != "write" or slave is None:
            return None
        return self._write(slave, str(args.get("point")), float(args.get("value", 0.0)))

    async def diagnose(self) -> AsyncIterator[str]:
        """Asks each slave once, and tells the bytes on the wire."""
        seen: list[str] = []

        def trace(is_sent: bool, data: bytes) -> bytes:
            seen.append(f"    {'->' if is_sent else '<-'} {data.hex(' ')}")
            return data

        for slave in self._slaves:
            yield f"{slave.asset}: {slave.serial or f'{slave.host}:{slave.port}'}, unit {slave.unit}"
            line = open_line(slave, self._settings.timeout_s, trace)
            station = _Station(slave, 1.0, 0.0)
            try:
                for block in station.blocks:
                    yield f"  {block.table} {block.address}, {block.size} values for {len(block.points)} points"
                values = await self._read(line, station)
                told = [
                    f"    {point.name} = {values[point.name]:g} {point.unit}"
                    for point in slave.points
                    if point.name in values
                ]
                for text in (*seen, *told, *(f"    {why}" for why in station.refused.values())):
                    yield text
            except ConnectorError as error:
                for text in seen:
                    yield text
                yield f"  {error}"
            finally:
                line.close()
                seen.clear()

    async def _keep(self, line: Line, stations: list[_Station]) -> None:
        """A line's life: whoever is due, in turn."""
        while True:
            station = min(stations, key=lambda one: one.due_s)
            await self._time.wait(max(0.0, station.due_s - self._time.timer()))
            await self._streams.put(await self._poll(line, station))
            station.next_due(self._time.timer())

    async def _poll(self, line: Line, station: _Station) -> list[Arrival]:
        asset, now, trouble = station.settings.asset, self._time.now(), ""
        found: list[Arrival] = []
        try:
            values = await self._read(line, station)
        except ConnectorError as error:
            self.ledger.received += 1
            station.failures += 1
            trouble = str(error)
            self.ledger.drop("no-answer", f"{asset}: {error.message}")
        else:
            self.ledger.received += 1
            station.failures = 0
            if values:
                self._stamped = max(self._time.now(), self._stamped + 1)
                found.append(Arrival(asset, Reading(self._stamped, values)))
            else:
                self.ledger.drop("refused", f"{asset}: {'; '.join(station.refused.values())}")
        facts = station.facts(now, trouble if station.is_gone else "")
        if station.told is None or replace(station.told, at=0) != replace(facts, at=0):
            station.told = facts
            self.ledger.received += 1
            found.insert(0, Arrival(asset, facts))
        return found

    async def _read(self, line: Line, station: _Station) -> dict[str, float]:
        """The values of all blocks. ConnectorError where the slave does not answer."""
        values: dict[str, float] = {}
        timeout_s = self._settings.probe_timeout_s if station.is_gone else 0.0
        blocks = list(station.blocks)
        while blocks:
            block = blocks.pop(0)
            try:
                raw = await line.read(station.settings.unit, block, timeout_s)
            except RefusalError as error:
                if error.code not in _modbus_line.OF_REGISTERS:
                    raise
                blocks = self._refused(station, block, error) + blocks
                continue
            for point in block.points:
                first = point.address - block.address
                try:
                    values[point.name] = _registers.decode(point, raw[first : first + point.width])
                except EventError:
                    continue  # NaN is how meters say that they have no value
        return values

    def _refused(self, station: _Station, block: Block, error: RefusalError) -> list[Block]:
        """A slave may refuse a block for one register in it: it is asked for less from then on."""
        if len(block.points) == 1 and block.size == block.points[0].width:
            station.refused[block.points[0].name] = f"'{block.points[0].name}': {error.message}"
            station.blocks = [one for one in station.blocks if one != block]
            return []
        parts = _registers.split(block)
        at = station.blocks.index(block)
        station.blocks[at : at + 1] = parts
        return parts

    async def _write(self, slave: Slave, name: str, value: float) -> dict[str, Any]:
        point = next((one for one in slave.points if one.name == name), None)
        line = self._lines.get(_place(slave))
        if point is None:
            raise ConnectorError(f"{slave.asset} has no point '{name}'", f"It has {', '.join(_names(slave.points))}.")
        words = _registers.encode(point, value)
        if line is None:
            raise ConnectorError(f"{slave.asset} is not open", "Try again in a moment.")
        await line.write(slave.unit, point.table, point.address, words)
        return {"asset": slave.asset, "point": name, "value": value}


def open_line(slave: Slave, timeout_s: float, trace: "_modbus_line.Trace | None" = None) -> Line:
    if slave.serial:
        return _modbus_line.serial(
            slave.serial, slave.baud, slave.parity, slave.stop_bits, timeout_s, slave.framing, trace
        )
    return _modbus_line.tcp(slave.host, slave.port, timeout_s, slave.framing, trace)


def _place(slave: Slave) -> tuple[object, ...]:
    return (slave.serial,) if slave.serial else (slave.host, slave.port)


def _complete(slave: Slave) -> Slave:
    """With the points of its map, checked. ConfigError."""
    checked(slave.asset)
    if bool(slave.host) == bool(slave.serial):
        raise ConfigError(f"{slave.asset}: a slave is at a host or on a serial line", "Set either host or serial.")
    shared = _mapped(slave.map) if slave.map else _Map([])
    points = [*shared.points, *slave.points]
    names = _names(points)
    if not points or len(set(names)) < len(names):
        problem = "names no points" if not points else "names a point twice"
        raise ConfigError(f"{slave.asset} {problem}", "See [[connectors.modbus.slaves]] in the reference.")
    for point in points:
        _registers.check(point)
    return replace(slave, points=points, maker=slave.maker or shared.maker, model=slave.model or shared.model)


def _mapped(path: str) -> _Map:
    try:
        with Path(path).expanduser().open("rb") as file:
            return msgspec.convert(tomllib.load(file), _Map)
    except OSError as error:
        raise ConfigError(
            f"the map {path} cannot be read: {error.strerror}", "Name a TOML file with [[points]]."
        ) from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"the map {path}: {error}", "Mend it; see the docstring of the connector.") from None


def _names(points: Sequence[Point]) -> list[str]:
    return [point.name for point in points]
