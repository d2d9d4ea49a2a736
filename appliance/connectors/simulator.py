"""A small pump to learn with: readings of a believable machine, and faults on request.

    [connectors.simulator]
    asset = "demo/pump"
    fault = "bearing-wear"      # or cavitation, leak, blocked-outlet, imbalance, sensor-drift
    fault_after_s = 60

While it runs: `millwright simulate leak`, `millwright simulate none`.
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from msgspec import Meta, Struct

from appliance.connectors._names import checked
from appliance.connectors._pace import REAL, Metronome, Time
from appliance.connectors._pump import SHOWS, Pump
from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError
from appliance.events.ledger import Ledger
from appliance.events.schema import Reading


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """A simulated centrifugal pump. Times are in seconds of the wall clock."""

    asset: Annotated[str, Meta(description="The asset its readings belong to.")] = "demo/pump"
    rate_hz: Annotated[float, Meta(ge=0.01, le=1000, description="Readings per second.")] = 10.0
    time_scale: Annotated[
        float, Meta(ge=0.01, le=1000, description="Seconds of the pump's life per second of the wall clock.")
    ] = 30.0
    seed: Annotated[int, Meta(ge=0, le=2**31, description="Same seed, same readings.")] = 1
    fault: Annotated[
        Literal["", "bearing-wear", "cavitation", "leak", "blocked-outlet", "imbalance", "sensor-drift"],
        Meta(description="What goes wrong; empty: nothing."),
    ] = ""
    fault_after_s: Annotated[float, Meta(ge=0, description="Healthy time before the fault begins.")] = 60.0
    fault_duration_s: Annotated[float, Meta(ge=0, description="How long the fault lasts; 0: for ever.")] = 0.0
    ramp_s: Annotated[float, Meta(ge=0, description="Time from the fault's first sign to its full size.")] = 10.0


def create(settings: Settings, time: Time = REAL) -> "Simulator":
    return Simulator(settings, time)


class Simulator:
    def __init__(self, settings: Settings, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._time = settings, time
        self._asset = checked(settings.asset)
        self._pump: Pump | None = None
        self._elapsed_s = 0.0
        self._fault: str = settings.fault or "none"
        self._begin_s = settings.fault_after_s

    async def __aenter__(self) -> Self:
        if self._pump is None:
            self._pump = Pump(self._settings.seed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        metronome = Metronome(1 / self._settings.rate_hz, self._time)
        while True:
            await metronome.tick()
            self.ledger.received += 1
            self.ledger.processed += 1
            yield [Arrival(self._asset, Reading(self._time.now(), self._next()))]

    def command(self, verb: str, args: dict[str, Any]) -> dict[str, Any] | None:
        """`inject` with a fault (or "none") and the asset: the fault begins now, at its configured pace."""
        if verb != "inject" or args.get("asset") != self._asset:
            return None
        fault = args.get("fault")
        if fault != "none" and fault not in SHOWS:
            raise ConnectorError(f"the pump has no fault {fault!r}", f"There are: {', '.join(SHOWS)}, none.")
        self._fault, self._begin_s = fault, self._elapsed_s
        return {"asset": self._asset, "fault": fault, "shows": list(SHOWS.get(fault, ()))}

    def _next(self) -> dict[str, float]:
        assert self._pump is not None, "entered first"
        dt_s = 1 / self._settings.rate_hz
        self._elapsed_s += dt_s
        faults = {} if self._fault == "none" else {self._fault: self._severity()}
        return self._pump.step(dt_s * self._settings.time_scale, faults)

    def _severity(self) -> float:
        """0 to 1: up over the ramp, and down again over the same where the fault ends."""
        settings = self._settings
        since_s = self._elapsed_s - self._begin_s
        grown = _ramp(since_s, settings.ramp_s)
        if not settings.fault_duration_s:
            return grown
        return grown - _ramp(since_s - settings.fault_duration_s, settings.ramp_s)


def _ramp(since_s: float, ramp_s: float) -> float:
    if since_s <= 0:
        return 0.0
    return min(1.0, since_s / ramp_s) if ramp_s else 1.0
