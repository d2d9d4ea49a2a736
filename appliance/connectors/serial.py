"""A serial line: text, NMEA 0183 or binary frames.

    [[connectors.serial]]
    port = "/dev/serial/by-id/usb-FTDI_FT232R_A10K-if00-port0"    # stable: not ttyUSB0, which changes
    asset = "hall1/scale"
    baud = 9600
    framing = {kind = "lines", fields = [{name = "weight", at = 0, unit = "kg"}]}

    [[connectors.serial]]
    port = "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0"
    asset = "ship/water"
    baud = 4800
    framing = {kind = "nmea"}                 # points by sentence and field: MTW.1, GGA.latitude

    [[connectors.serial]]
    port = "/dev/ttyS1"
    asset = "hall1/oven"
    baud = 19200
    parity = "E"
    request = "?T\\r"                          # sent at each interval, where the device wants to be asked
    interval_s = 2.0

    [connectors.serial.framing]
    kind = "fixed"
    start_hex = "aa55"
    length = 9
    checksum = "sum8"
    fields = [
        {name = "temperature", at = 2, type = "int16", scale = 0.1, unit = "°C"},
        {name = "pressure", at = 4, type = "float32", order = "little", unit = "bar"},
    ]

Of lines without `fields`, `name=value` pairs are points, otherwise numbers by their place. A line that is pulled out is
told, and opened again when it comes back under the same path.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from msgspec import Meta, Struct, field
from serial import Serial  # type: ignore[attr-defined]  # it is there, and has no types

from appliance.connectors import _frames
from appliance.connectors._frames import Cutter, Framing
from appliance.connectors._names import checked
from appliance.connectors._pace import REAL, Metronome, Time
from appliance.connectors._streams import Streams
from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError, EventError
from appliance.events.ledger import Ledger
from appliance.events.schema import Device, Reading
from appliance.protocols import units

CHUNK = 4096
SHOWN_S = 10.0  # of what is on the wire


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """A serial line."""

    port: Annotated[str, Meta(min_length=1, description="Its device, best below /dev/serial/by-id.")]
    asset: Annotated[str, Meta(min_length=1, description="The asset its readings belong to.")]
    baud: Annotated[int, Meta(ge=50, le=4_000_000, description="Speed in bit/s.")] = 9600
    bits: Annotated[int, Meta(ge=5, le=8, description="Bits of a byte.")] = 8
    parity: Annotated[Literal["N", "E", "O"], Meta(description="None, even or odd.")] = "N"
    stop_bits: Annotated[int, Meta(ge=1, le=2, description="After a byte.")] = 1
    framing: Annotated[Framing, Meta(description="How bytes become frames and values.")] = field(
        default_factory=Framing
    )
    request: Annotated[str, Meta(max_length=200, description="Sent at each interval; empty: the device speaks.")] = ""
    interval_s: Annotated[float, Meta(ge=0.01, le=3600, description="Between two requests.")] = 1.0
    name: Annotated[str, Meta(max_length=100, description="What people call it; empty: its asset.")] = ""


def create(settings: Settings, time: Time = REAL) -> "SerialLine":
    return SerialLine(settings, time)


class SerialLine:
    is_patient = True

    def __init__(self, settings: Settings, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._time = settings, time
        self._asset = checked(settings.asset)
        _frames.check(settings.framing)
        self._line: Any = None
        self._streams = Streams(self.ledger)
        self._stamped = 0
        self._points: set[str] = set()

    def assets(self) -> list[str]:
        return [self._asset]

    async def __aenter__(self) -> Self:
        settings, self._streams, self._points = self._settings, Streams(self.ledger), set()
        try:
            self._line = Serial(  # type: ignore[no-untyped-call]  # it has no types
                settings.port,
                settings.baud,
                settings.bits,
                settings.parity,
                settings.stop_bits,
                timeout=0,
                write_timeout=0,  # a line that takes nothing must not stop the loop
                exclusive=True,
            )
        except (OSError, ValueError) as error:  # SerialException is an OSError
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise ConnectorError(
                f"{settings.port} cannot be opened: {reason}", "Is it plugged in, and is this user in group dialout?"
            ) from error
        self._streams.start(self._keep_reading(self._line), f"serial {settings.port}")
        if settings.request:
            self._streams.start(self._keep_asking(self._line), f"serial {settings.port} requests")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._streams.close()
        if self._line is not None:
            self._line.close()
            self._line = None

    def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        return self._streams.read()

    async def diagnose(self) -> AsyncIterator[str]:
        """The bytes of the first seconds, and what was read of them."""
        yield f"{self._asset}: {self._settings.port}, {self._settings.baud} bit/s"
        async with self:
            assert self._line is not None
            cutter, until_s = Cutter(self._settings.framing), self._time.timer() + SHOWN_S
            await self._streams.close()
            for _ in range(20):
                data = await self._some(self._line, until_s)
                if not data:
                    break
                yield f"  <- {data[:64].hex(' ')}"
                for frame in cutter.feed(data):
                    yield f"     {self._told(frame)}"

    def _told(self, frame: bytes) -> str:
        try:
            return ", ".join(
                f"{name} = {value:g}" for name, value in _frames.values(self._settings.framing, frame).items()
            )
        except EventError as error:
            return f"{error.reason}: {error.message}"

    async def _keep_reading(self, line: Any) -> None:
        cutter = Cutter(self._settings.framing)
        while True:
            data = await self._some(line)
            before = cutter.skipped
            arrivals: list[Arrival] = []
            for frame in cutter.feed(data):
                arrivals += self._read(frame)
            if cutter.skipped > before:
                self.ledger.received += 1
                self.ledger.drop("no-frame", f"{self._settings.port}: {cutter.skipped - before} bytes begin no frame")
            await self._streams.put(arrivals)

    async def _keep_asking(self, line: Any) -> None:
        metronome = Metronome(self._settings.interval_s, self._time)
        while True:
            await metronome.tick()
            try:
                line.write(self._settings.request.encode())
            except OSError as error:
                raise self._lost(error) from error

    async def _some(self, line: Any, until_s: float | None = None) -> bytes:
        """What has arrived, at least a byte. ConnectorError where the line is gone. Nothing at `until_s`."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        descriptor = line.fileno()
        loop.add_reader(descriptor, ready.set)
        if until_s is not None:
            loop.call_later(max(0.0, until_s - self._time.timer()), ready.set)
        try:
            await ready.wait()
            data: bytes = line.read(CHUNK)
        except OSError as error:
            raise self._lost(error) from error
        finally:
            loop.remove_reader(descriptor)
        if not data and until_s is None:
            raise self._lost(OSError("nothing can be read of it"))
        return data

    def _lost(self, error: OSError) -> ConnectorError:
        return ConnectorError(f"{self._settings.port} is gone: {error}", "Plug it in: it is opened again by itself.")

    def _read(self, frame: bytes) -> list[Arrival]:
        self.ledger.received += 1
        try:
            values = _frames.values(self._settings.framing, frame)
        except EventError as error:
            self.ledger.refuse(error, self._settings.port)
            return []
        self._stamped = max(self._time.now(), self._stamped + 1)
        found = [Arrival(self._asset, Reading(self._stamped, values))]
        new = values.keys() - self._points
        if new and len(self._points) < _frames.MAX_POINTS:
            self._points |= new
            self.ledger.received += 1
            found.insert(0, Arrival(self._asset, self._facts()))
        return found

    def _facts(self) -> Device:
        declared = {one.name: one.unit for one in self._settings.framing.fields}
        return Device(
            self._time.now(),
            self._settings.name or self._asset,
            "serial",
            self._settings.port,
            units={name: units.code(declared.get(name, "")) for name in sorted(self._points)},
            available=True,
        )
