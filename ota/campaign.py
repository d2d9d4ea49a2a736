"""Who takes which version, and when: a signed file, and a device that decides alone. Pure.

    {"id": "pump-1.3", "salt": "7f3a", "model": "pump", "version": "1.3.0", "bundle": "<content hash>",
     "waves": [{"name": "canary", "opens": "2026-11-21T08:00:00Z", "basis_points": 100},
               {"name": "plant", "opens": "2026-11-23T08:00:00Z", "basis_points": 10000,
                "labels": {"site": ["berlin"]}, "after_confirmed": 20, "spread_s": 14400}],
     "windows": [{"days": ["sat", "sun"], "from": "00:00", "to": "24:00"}, {"from": "22:00", "to": "05:30"}],
     "never": [{"days": ["mon"], "from": "06:00", "to": "14:00"}],
     "stop": {"reports": 5, "rolled_back_basis_points": 500, "refused_basis_points": 1000}}

A device's place is SHA-256(salt, 0x00, device id) mod 10000, the hash read as one big-endian number. It belongs to the
first wave whose labels it has and whose `basis_points` are above its place, so a later wave's share holds the earlier
one's. The server keeps no state of any device: what came back is summed up by whoever signs, as `progress`, and every
device holds that against `stop` by itself.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from ota.errors import ManifestError
from ota.manifest import Hash, Name, Version, Word

LIMIT = 64 << 10  # bytes of the file
WHOLE = 10_000  # basis points
_DAYS: tuple["Day", ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
BasisPoints = Annotated[int, Meta(ge=0, le=WHOLE, description="of 10000")]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
Clock = Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$")]
When = Annotated[datetime, Meta(tz=True)]
Labels = Annotated[dict[Label, Annotated[tuple[Label, ...], Meta(max_length=256)]], Meta(max_length=16)]


class Wave(Struct, frozen=True, forbid_unknown_fields=True):
    """`labels`: the device has, for each of them, one of the values. `spread_s`: not all of them at once."""

    name: Word
    opens: When
    basis_points: BasisPoints = WHOLE
    labels: Labels = field(default_factory=dict)
    after_confirmed: Count = 0  # devices of earlier waves that must have confirmed
    spread_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 0


class Window(Struct, frozen=True, forbid_unknown_fields=True):
    """Times of the device's own day, `to` not included. One that ends before it begins goes on past midnight."""

    begin: Clock = field(name="from")
    end: Clock = field(name="to")
    days: Annotated[tuple[Day, ...], Meta(min_length=1, max_length=7)] = _DAYS  # of its beginning


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    """Criteria over the devices that reported, from `reports` of them on."""

    reports: Annotated[int, Meta(ge=1, le=1 << 40)] = 1
    rolled_back_basis_points: BasisPoints = WHOLE
    refused_basis_points: BasisPoints = WHOLE


class Progress(Struct, frozen=True, forbid_unknown_fields=True):
    """What came back so far, summed up by whoever signs."""

    confirmed: Count = 0
    rolled_back: Count = 0
    refused: Count = 0

    @property
    def reports(self) -> int:
        return self.confirmed + self.rolled_back + self.refused


class Campaign(Struct, frozen=True, forbid_unknown_fields=True):
    """A field that this box does not know makes the whole file unreadable to it: it may be a condition."""

    id: Name
    salt: Annotated[str, Meta(pattern=r"^[0-9a-zA-Z_.-]{1,64}$")]
    model: Name
    version: Version
    bundle: Hash
    waves: Annotated[tuple[Wave, ...], Meta(min_length=1, max_length=64)]
    windows: Annotated[tuple[Window, ...], Meta(max_length=64)] = ()  # where there are none: at any time
    never: Annotated[tuple[Window, ...], Meta(max_length=64)] = ()  # a shift, say; it wins over `windows`
    stop: Stop = Stop()
    progress: Progress = Progress()
    paused: bool = False
    stopped: bool = False
    reason: Annotated[str, Meta(max_length=300)] = ""  # of either, for people


@dataclass(frozen=True)
class Device:
    """What the device is, by its own knowledge."""

    id: str
    labels: Mapping[str, str]


class Choice(StrEnum):
    TAKE = "take"
    WAIT = "wait"  # it may be asked again later
    LEAVE = "leave"  # this campaign is not for this device, or is over


@dataclass(frozen=True)
class Decision:
    choice: Choice
    reason: str
    wave: str = ""
    at: datetime | None = None  # not before, where that can be told


def read(data: bytes) -> Campaign:
    """ManifestError: too large, no JSON, or a field that is wrong or not known."""
    if len(data) > LIMIT:
        raise ManifestError(f"a campaign of more than {LIMIT:,} bytes", "Name cohorts by labels, not devices.")
    try:
        return msgspec.json.decode(data, type=Campaign)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"the campaign cannot be read: {error}", "Check it with `millwright-publish`.") from error


def written(campaign: Campaign) -> bytes:
    data = msgspec.json.format(msgspec.json.encode(campaign), indent=1)
    read(data)
    return data


def place(salt: str, device: str) -> int:
    """0 to 9999, evenly over devices, and another one under another salt."""
    return int.from_bytes(hashlib.sha256(salt.encode() + b"\0" + device.encode()).digest(), "big") % WHOLE


def decide(campaign: Campaign, device: Device, now: datetime) -> Decision:
    """`now` is aware, in the zone of the device's own day."""
    if campaign.stopped:
        return Decision(Choice.LEAVE, f"stopped by whoever signs{_because(campaign)}")
    if broken := broken_criterion(campaign.stop, campaign.progress):
        return Decision(Choice.LEAVE, broken)
    wave = wave_of(campaign, device)
    if wave is None:
        return Decision(Choice.LEAVE, "no wave is for this device")
    return _when(campaign, wave, device, now)


def _when(campaign: Campaign, wave: Wave, device: Device, now: datetime) -> Decision:
    opens = wave.opens + timedelta(seconds=_delay(campaign, wave, device))
    if campaign.paused:
        return Decision(Choice.WAIT, f"paused by whoever signs{_because(campaign)}", wave.name)
    if now < opens:
        return Decision(Choice.WAIT, "its wave is not open yet", wave.name, opens)
    if campaign.progress.confirmed < wave.after_confirmed:
        return Decision(Choice.WAIT, f"{wave.after_confirmed} devices must have confirmed before it", wave.name)
    if campaign.windows and not any(_within(window, now) for window in campaign.windows):
        return Decision(Choice.WAIT, "outside of all windows", wave.name)
    if any(_within(window, now) for window in campaign.never):
        return Decision(Choice.WAIT, "not at this time of day", wave.name)
    return Decision(Choice.TAKE, "its wave is open", wave.name)


def wave_of(campaign: Campaign, device: Device) -> Wave | None:
    """The first one that is for it."""
    here = place(campaign.salt, device.id)
    return next((wave for wave in campaign.waves if here < wave.basis_points and _has(device, wave.labels)), None)


def broken_criterion(stop: Stop, progress: Progress) -> str:
    """Which criterion to stop is met, in words; empty where none is."""
    if progress.reports < stop.reports:
        return ""
    for what, count, allowed in (
        ("rolled back", progress.rolled_back, stop.rolled_back_basis_points),
        ("refused", progress.refused, stop.refused_basis_points),
    ):
        if count * WHOLE > allowed * progress.reports:
            return f"{count} of {progress.reports} devices {what} it; {allowed / 100:g} % are allowed"
    return ""


def _because(campaign: Campaign) -> str:
    return f": {campaign.reason}" if campaign.reason else ""


def _delay(campaign: Campaign, wave: Wave, device: Device) -> int:
    """Another number than the place, which is small for all of an early wave."""
    drawn = hashlib.sha256(f"{campaign.salt}\0{device.id}\0{wave.name}".encode()).digest()
    return int.from_bytes(drawn, "big") % (wave.spread_s + 1)


def _has(device: Device, labels: Mapping[str, tuple[str, ...]]) -> bool:
    return all(device.labels.get(label) in values for label, values in labels.items())


def _within(window: Window, now: datetime) -> bool:
    minute = now.hour * 60 + now.minute
    begin, end = _minutes(window.begin), _minutes(window.end)
    if begin < end:
        return begin <= minute < end and _DAYS[now.weekday()] in window.days
    yesterday = _DAYS[(now.weekday() - 1) % 7]
    return (minute >= begin and _DAYS[now.weekday()] in window.days) or (minute < end and yesterday in window.days)


def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])
