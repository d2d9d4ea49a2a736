"""This machine itself: load, memory, disk, network, temperatures.

    [connectors.host]
    interval_s = 1.0

What the machine does not have (a temperature sensor, swap) is simply absent. Rates begin with the second reading.
"""

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Annotated, NamedTuple, Self

import psutil
from msgspec import Meta, Struct

from appliance.connectors._names import checked, level
from appliance.connectors._pace import REAL, Metronome, Time
from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError
from appliance.events.ledger import Ledger
from appliance.events.schema import Reading


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The machine that Millwright runs on."""

    asset: Annotated[str, Meta(description="The asset its readings belong to; empty: `box/<host name>`.")] = ""
    interval_s: Annotated[float, Meta(ge=0.1, le=3600, description="Time between two readings.")] = 1.0
    disk: Annotated[str, Meta(description="A folder on the disk whose space is watched.")] = "/"


def create(settings: Settings, time: Time = REAL) -> "Host":
    return Host(settings, time)


class Sample(NamedTuple):
    """What the machine says at one moment."""

    levels: dict[str, float]  # readings as they are
    totals: dict[str, float]  # bytes since the start of the machine, by the name of their rate
    busy_s: float  # of all processors together, since the start
    idle_s: float


class Host:
    def __init__(self, settings: Settings, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._time = settings, time
        self._asset = checked(settings.asset or f"box/{level(platform.node(), 'host')}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        metronome = Metronome(self._settings.interval_s, self._time)
        before: tuple[float, Sample] | None = None
        while True:
            await metronome.tick()
            # In a thread: a slow sensor chip may hold a read of /sys for a tenth of a second.
            sample = await asyncio.to_thread(_read, self._settings.disk)
            moment = self._time.timer()
            values = {**sample.levels, **(rates(before[1], sample, moment - before[0]) if before else {})}
            before = moment, sample
            self.ledger.received += 1
            self.ledger.processed += 1
            yield [Arrival(self._asset, Reading(self._time.now(), values))]


def rates(before: Sample, now: Sample, elapsed_s: float) -> dict[str, float]:
    """What follows from two samples. A counter that ran backwards (a device that went) has no rate this time."""
    found = {}
    for name, total in now.totals.items():
        grown = total - before.totals.get(name, total + 1)
        if grown >= 0 and elapsed_s > 0:
            found[name] = round(grown / elapsed_s, 1)
    busy_s, idle_s = now.busy_s - before.busy_s, now.idle_s - before.idle_s
    if busy_s >= 0 and idle_s >= 0 and busy_s + idle_s > 0:
        found["cpu_percent"] = round(100 * busy_s / (busy_s + idle_s), 2)
    return found


def _read(disk: str) -> Sample:
    try:
        levels = {
            "load_1m": round(os.getloadavg()[0], 2),
            "memory_used_percent": psutil.virtual_memory().percent,
            "disk_used_percent": psutil.disk_usage(disk).percent,
            **_swap(),
            **_temperatures(),
        }
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        return Sample(levels, _totals(), sum(times[:8]) - idle_s, idle_s)  # guest times are in user and nice already
    except (OSError, psutil.Error) as error:
        raise ConnectorError(
            f"this machine cannot be read: {error}", "Check 'disk' of [connectors.host] and the rights on /proc."
        ) from error


def _swap() -> dict[str, float]:
    swap = psutil.swap_memory()
    return {"swap_used_percent": swap.percent} if swap.total else {}


def _totals() -> dict[str, float]:
    totals: dict[str, float] = {}
    # psutil has no counters where a container hides the disks.
    if disks := psutil.disk_io_counters():
        totals["disk_read_bytes_per_s"] = disks.read_bytes
        totals["disk_write_bytes_per_s"] = disks.write_bytes
    cards = [counters for name, counters in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    if cards:
        totals["network_received_bytes_per_s"] = sum(card.bytes_recv for card in cards)
        totals["network_sent_bytes_per_s"] = sum(card.bytes_sent for card in cards)
    return totals


def _temperatures() -> dict[str, float]:
    """The hottest sensor of each group that psutil knows (coretemp, nvme, acpitz, ...)."""
    hottest = {}
    for group, sensors in psutil.sensors_temperatures().items():
        if known := [sensor.current for sensor in sensors if sensor.current is not None]:
            hottest[f"temperature_{level(group, 'sensor')}_c"] = max(known)
    return hottest
