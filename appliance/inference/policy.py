"""Which device a model should run on. Pure: facts, figures and times come in.

    latency      the device that answers one row soonest
    throughput   the device that computes most rows a second
    low-power    NPU, GPU, then one thread of the CPU
    a list       its order

The CPU is always the last resort.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from appliance.inference.port import Plan

Policy = Literal["latency", "throughput", "low-power"]

AUTO = "auto"
CPU = "CPU"
STRENGTH = ("NPU", "GPU", "CPU")  # the least power for a row first; untried devices are tried in this order


class Terms(Struct, frozen=True):
    """What the configuration says of the devices."""

    devices: tuple[str, ...] = (AUTO,)  # auto, or names in the order of preference
    policy: Policy = "latency"
    isolate: Literal["accelerators", "all", "none"] = "accelerators"  # what computes in a process of its own
    deadline_s: float = 2.0  # of one call, where it is isolated
    patience_s: float = 10.0  # that the start waits for devices; what comes later takes over then
    blobs: Path | None = None  # folder of what was compiled
    blobs_bytes: int = 256 << 20
    first_pause_s: float = 30.0  # before a device that failed is tried again
    longest_pause_s: float = 3600.0

    @property
    def measures(self) -> bool:
        """Whether figures decide, not an order."""
        return AUTO in self.devices and self.policy != "low-power"

    def plan(self, eager: bool) -> Plan:
        """How a model is compiled."""
        return Plan(
            streams=0 if self.policy == "throughput" else 1,
            threads=1 if self.policy == "low-power" else 0,
            eager=eager,
            blobs=str(self.blobs or ""),
            blobs_bytes=self.blobs_bytes,
        )


TERMS = Terms()


class Fact(Protocol):
    """What is known of a device before it is tried; `hardware.accelerators.Accelerator` has it."""

    @property
    def device(self) -> str: ...  # OpenVINO's name: CPU, GPU, GPU.1, NPU

    @property
    def present(self) -> bool: ...  # the hardware is there, usable or not

    @property
    def reason(self) -> str: ...  # why it cannot be used; empty where it can

    @property
    def name(self) -> str: ...

    @property
    def driver(self) -> str: ...

    @property
    def firmware(self) -> str: ...

    @property
    def node(self) -> str: ...  # /dev/...

    @property
    def remedy(self) -> str: ...  # against the reason


class Figures(NamedTuple):
    """What a device did with a model."""

    latency_s: float  # one row
    rows_per_s: float

    def merit(self, policy: Policy) -> float:
        """The smaller the better."""
        return -self.rows_per_s if policy == "throughput" else self.latency_s


class Wish(NamedTuple):
    """A device that may be used."""

    device: str
    reason: str  # why it cannot be used now; empty where it can
    named: bool  # the configuration asks for it


def wishes(devices: Sequence[str], facts: Iterable[Fact]) -> list[Wish]:
    """Every device that may be used, in the order in which they are tried. `devices`: auto, or names in order."""
    auto = AUTO in devices
    known = {fact.device: fact.reason for fact in facts if fact.present or not auto}
    found: dict[str, Wish] = {}
    for word in STRENGTH if auto else devices:
        for device in _of_kind(word, known) or ([] if auto else [word]):
            found.setdefault(device, Wish(device, known.get(device, ""), not auto))
    found[CPU] = Wish(CPU, "", CPU in found and not auto)  # at its place, else at the end
    return list(found.values())


class Quarantine:
    """When a device that failed may be tried again: after `first_s`, then twice as long each time, at most `longest_s`.

    A device that has worked for longer than its last pause is forgiven. Times in seconds of any steady clock.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._pause_s = 0.0
        self._worked_since = 0.0
        self.until = 0.0

    def fail(self, now: float) -> None:
        if now - self._worked_since > self._pause_s:
            self._pause_s = 0.0
        self._pause_s = min(self._pause_s * 2 or self._first_s, self._longest_s)
        self._worked_since = self.until = now + self._pause_s

    def work(self, now: float) -> None:
        self._worked_since = now


def _of_kind(kind: str, known: Iterable[str]) -> list[str]:
    return sorted(device for device in known if device == kind or device.partition(".")[0] == kind)
