"""A fleet takes a bad model, stops by itself, and takes a good one: tools/fleet N [--seed S] [--json FILE]

Every device has the client that boxes have; the web server gives static files and knows no device; those who sign sit
down every few hours. Simulated are the clocks, how the models do, and the way on which receipts come back.

    a bad model      its signatures are right; where it runs it is rolled back on 7 of 10 devices
    the campaign     a canary, half of the fleet a day later, then the rest; it stops at 1 in 10 rolled back
    a good model     published when the first campaign has stopped, as a delta from what is in use
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ota import bundle as bundles
from ota import courier
from ota.campaign import Stop, place
from ota.manifest import Bundle
from ota.sources import Repository
from tools.rollout import office, server
from tools.rollout.device import SimulatedDevice
from tools.rollout.office import FLEET, Office
from tools.rollout.server import Counts

BEGAN_S = 1_795_000_000.0  # 2026-11-18, when this takes place
HOUR, DAY = 3600.0, 86_400.0
STOP = Stop(reports=5, rolled_back_basis_points=1000, refused_basis_points=2000)
ILL = 0.7  # of the devices roll the bad model back
WORKERS = 4


@dataclass(frozen=True)
class Scenario:
    devices: int
    canary: int = 300  # basis points
    poll_s: float = 4 * HOUR
    desk_s: float = 6 * HOUR  # between two times that those who sign sit down
    model_bytes: int = 256 << 10
    limit_s: float = 14 * DAY
    seed: int = 1


@dataclass
class Result:
    """Times are of the simulation, seconds; bytes are those that the web server gave."""

    devices: int
    canary: int = 0  # devices of the first wave
    took_bad: int = 0  # devices on which the bad model ever ran
    rolled_back: int = 0
    stopped: str = ""  # the criterion
    stopped_after_s: float = math.nan
    good_done_s: dict[str, float] = field(default_factory=dict)  # by share of the devices
    whole_bytes: int = 0
    bad: Counts | None = None
    good: Counts | None = None
    troubles: int = 0
    polls: int = 0
    took_s: float = 0.0  # of our own time


def simulate(scenario: Scenario, folder: Path, say: Callable[[str], None] = lambda line: None) -> Result:
    site = _Site(scenario, folder)
    began = time.monotonic()
    with server.serving(site.office.workshop.repository) as web, ThreadPoolExecutor(WORKERS) as workers:
        site.deliver(Repository.at(web.url))
        say(f"{scenario.devices} devices, delivered with {office.MODEL} 1.0.0")
        bad, before = site.announce("1.1.0", 2), web.counts()
        site.ill = bad.bundle
        site.run(workers, lambda: bool(site.result.stopped))
        _tell_bad(site, bad, say)
        site.result.bad, before = _since(before, web.counts()), web.counts()
        good, opened = site.announce("1.2.0", 3), site.now
        site.run(workers, lambda: site.count(good, opened) == scenario.devices)
        site.result.good = _since(before, web.counts())
        site.result.whole_bytes = site.office.whole_bytes(good)
    site.result.troubles = sum(device.troubles for device in site.devices)
    site.result.took_s = time.monotonic() - began
    return site.result


class _Site:
    """The fleet and those who sign, and what time it is for them."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self._scenario, self._folder = scenario, folder
        self.now, self.result = BEGAN_S, Result(scenario.devices)
        self.ill = ""  # the bundle that is bad
        self.outbox = folder / "outbox"
        self.outbox.mkdir()
        self.receipts = self.outbox / courier.FOLDER / "receipts"
        self.office = Office(folder / "workshop", self.receipts, lambda: self.now)
        self._weights = office.weights(scenario.model_bytes, scenario.seed)
        self._factory = office.model(folder / "models", "1.0.0", self._weights)
        self.office.add(self._factory)
        self.devices: list[SimulatedDevice] = []
        self._began = 0.0  # of the campaign

    def deliver(self, repository: Repository) -> None:
        named = self._factory.with_name(bundles.digest(self._factory))
        self._factory.rename(named)
        for number in range(self._scenario.devices):
            name = f"box-{number:05}"
            self.devices.append(
                SimulatedDevice(
                    self._folder / "devices" / name, name, self.office.root, repository, FLEET, named, self.outbox,
                    self._fate, BEGAN_S,
                )
            )  # fmt: skip

    def announce(self, version: str, seed: int) -> Bundle:
        """A new model, tuned from the first one, and its campaign."""
        devices, canary = self._scenario.devices, self._scenario.canary
        folder = office.model(self._folder / "models", version, office.tuned(self._weights, seed))
        added = self.office.add(folder)
        waves = office.waves(self.now, canary, max(devices * canary // 20_000, 1), devices // 4)
        self.office.announce(added, waves, STOP)
        self._began = self.now
        return added

    def run(self, workers: ThreadPoolExecutor, done: Callable[[], bool]) -> None:
        """Until it is done, or the limit: devices look at times of their own, spread over the interval."""
        scenario, step = self._scenario, self._scenario.poll_s / 8
        while not done() and self.now - self._began < scenario.limit_s:
            self.now += step
            turn = int((self.now - BEGAN_S) / step) % 8
            due = [device for number, device in enumerate(self.devices) if number % 8 == turn]
            for _ in workers.map(lambda device: device.poll(self.now), due):
                self.result.polls += 1
            if (self.now - BEGAN_S) % scenario.desk_s < step:
                self._sit_down()

    def _sit_down(self) -> None:
        broken = self.office.sum_up()
        if broken and not self.result.stopped:
            self.result.stopped, self.result.stopped_after_s = broken, self.now - self._began

    def count(self, good: Bundle, opened: float) -> int:
        """Devices that use it; when so many did for the first time is noted."""
        using = sum(device.bundle == good.bundle for device in self.devices)
        for share in (0.03, 0.5, 0.95, 1.0):
            if using >= share * len(self.devices):
                self.result.good_done_s.setdefault(f"{share:.0%}", self.now - opened)
        return using

    def _fate(self, device: str, bundle: str) -> str:
        drawn = hashlib.sha256(f"{self._scenario.seed} {device}".encode()).digest()[0]
        return "its alarms do not fit" if bundle == self.ill and drawn < ILL * 256 else ""


def _tell_bad(site: _Site, bad: Bundle, say: Callable[[str], None]) -> None:
    result, found = site.result, office.outcomes(courier.receipts(site.receipts), bad.bundle)
    first = site.office.campaign
    assert first is not None
    result.canary = sum(place(first.salt, device.name) < first.waves[0].basis_points for device in site.devices)
    result.rolled_back = len(found.get("rolled-back", ()))
    running = {device.name for device in site.devices if device.bundle == bad.bundle}
    result.took_bad = len(running.union(*found.values()))
    say(f"the bad model stopped after {result.stopped_after_s / HOUR:.1f} h: {result.stopped}")


def _since(before: Counts, now: Counts) -> Counts:
    differences = {kind: count - before.bytes.get(kind, 0) for kind, count in now.bytes.items()}
    return Counts(now.requests - before.requests, now.missed - before.missed, now.headers - before.headers, differences)


def _told(result: Result) -> str:
    bad, good, devices = result.bad, result.good, result.devices
    assert bad is not None
    assert good is not None
    hours = ", ".join(f"{share} after {seconds / HOUR:.1f} h" for share, seconds in result.good_done_s.items())
    models = good.bytes.get("deltas", 0) + good.bytes.get("bundles", 0)
    return "\n".join(
        (
            f"bad model    ran on {result.took_bad} of {devices} devices; its first wave has {result.canary};"
            f" {result.rolled_back} rolled back; {bad.served:,} bytes served",
            f"good model   {hours}",
            f"served       {good.served:,} bytes in {good.requests:,} requests ({good.missed:,} for a next root);"
            f" {good.served / devices:,.0f} bytes a device",
            *(f"  {kind:<10} {count:,}" for kind, count in sorted(good.bytes.items())),
            f"  headers    {good.headers:,}",
            f"models       {models / devices:,.0f} bytes a device; whole it has {result.whole_bytes:,}"
            f" ({models / devices / result.whole_bytes:.0%})",
            f"simulation   {result.polls:,} looks of devices in {result.took_s:.0f} s; {result.troubles} in vain",
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/fleet", description="Simulates updates of a fleet.")
    parser.add_argument("devices", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mw-fleet-") as folder:
        canary = max(300, 10_000 * 10 // options.devices)  # ten devices at least can be expected in it
        result = simulate(Scenario(options.devices, min(canary, 5000), seed=options.seed), Path(folder), print)
    print(_told(result))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=1))
    kept = result.took_bad <= result.canary and bool(result.stopped) and "100%" in result.good_done_s
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
