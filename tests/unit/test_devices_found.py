"""Devices as dialects find them: their facts, their units, and what is made of those that misbehave."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.connectors.dialects._devices import REMEDIES, Devices, Limits, asset_of
from appliance.connectors.dialects.port import Facts, Refused, Sample, Standing
from appliance.connectors.port import Arrival
from appliance.errors import MillwrightError
from appliance.events import topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Device, Reading
from appliance.services import devices as remembered

NOW = 1_750_000_000_000_000_000
SECOND = 1_000_000_000


class Found:
    """The devices of a dialect, and what came of each message."""

    def __init__(self, **limits: Any) -> None:
        self.ledger, self.now = Ledger(), NOW
        self.kept: dict[str, Device] = {}
        self.devices = Devices("acme", self.ledger, Limits(**limits), self.kept.get)

    def take(self, *outcomes: Facts | Sample | Standing | Refused, after_s: float = 1.0) -> list[Arrival]:
        self.now += round(after_s * SECOND)
        arrivals = self.devices.take(outcomes, self.now)
        for asset, event in arrivals:
            if isinstance(event, Device):
                self.kept[asset] = event
        return arrivals

    def values(self, **values: Any) -> dict[str, float]:
        for _, event in self.take(Sample("d1", values)):
            if isinstance(event, Reading):
                return event.values
        return {}

    @property
    def device(self) -> Device:
        return self.kept["acme/d1"]


@pytest.fixture
def found() -> Found:
    return Found()


def test_units_are_ucum_and_a_change_within_a_dimension_is_converted(found: Found) -> None:
    found.take(Facts("d1", "Pump", "Acme", units={"power": "W", "t": "°C", "n": "steps"}))
    assert found.device.units == {"power": "W", "t": "Cel", "n": "{steps}"}
    found.take(Facts("d1", units={"power": "kW", "t": "°F"}))
    assert found.device.units == {"power": "W", "t": "Cel", "n": "{steps}"}
    assert found.values(power=1.5, t=212, n=3) == {"power": 1500, "t": pytest.approx(100), "n": 3}


def test_a_unit_that_becomes_something_else_is_contained_and_told(found: Found) -> None:
    found.take(Facts("d1", units={"x": "W", "y": "V"}))
    found.take(Facts("d1", units={"x": "°C"}))
    assert found.values(x=20.0, y=230) == {"y": 230}
    assert found.ledger.dropped == {"unit-changed": 1}
    assert "unit-changed" in found.device.trouble
    assert REMEDIES["unit-changed"] in found.device.trouble
    found.take(Facts("d1", units={"x": "W"}))
    assert found.values(x=20.0) == {"x": 20.0}


def test_words_are_numbers_and_other_text_is_nothing(found: Found) -> None:
    assert found.values(a="ON", b="off", c=True, d="idle", e=None) == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert found.values(d="idle") == {}
    assert found.ledger.dropped == {}


def test_a_number_that_becomes_text_is_told(found: Found) -> None:
    found.values(t=20.5, p=1)
    assert found.values(t="broken", p=2) == {"p": 2.0}
    assert found.values(t="broken") == {}
    assert found.ledger.dropped == {"type-changed": 1}
    assert "type-changed" in found.device.trouble
    assert found.values(t="unavailable") == {}
    assert found.ledger.dropped == {"type-changed": 1}


def test_a_flood_is_cut_and_the_others_notice_nothing() -> None:
    found = Found(rate_hz=10)
    readings = 0
    for _ in range(1000):
        arrivals = found.take(Sample("d1", {"x": 1}), after_s=0.001)
        readings += sum(isinstance(event, Reading) for _, event in arrivals)
    assert 48 <= readings <= 50, "four seconds' worth at once, then ten a second"
    assert found.ledger.dropped == {"flood": 1000 - readings}
    assert "flood" in found.device.trouble
    other = found.take(Sample("d2", {"x": 1}), after_s=0.001)
    assert any(isinstance(event, Reading) for _, event in other)


def test_a_thousand_devices_too_many_are_counted() -> None:
    found = Found(devices=3)
    for number in range(10):
        found.take(Sample(f"d{number}", {"x": 1}))
    assert len(found.devices) == 3
    assert found.ledger.dropped == {"too-many-devices": 7}


def test_an_identity_that_another_device_claims_is_told(found: Found) -> None:
    found.take(Facts("d1", "Pump", proof="A0"))
    found.take(Facts("d1", "Thief", proof="B0"))
    assert found.device.name == "Pump"
    assert found.device.identity == "A0"
    assert "id-reused" in found.device.trouble


def test_an_identity_is_remembered_over_a_restart(found: Found) -> None:
    found.take(Facts("d1", "Pump", proof="A0", units={"x": "W"}))
    after = Found()
    after.kept |= found.kept
    after.take(Facts("d1", "Thief", proof="B0", units={"x": "°C"}))
    assert after.device.name == "Pump"
    assert after.ledger.dropped == {"id-reused": 1}
    after.take(Facts("d1", units={"x": "°C"}))
    assert after.values(x=1) == {}


def test_the_clock_of_a_device_counts_as_long_as_it_may_be_right(found: Found) -> None:
    def stamped(at: int) -> int:
        return next(event.at for _, event in found.take(Sample("d1", {"x": 1.0}, at)) if isinstance(event, Reading))

    assert stamped(found.now - 60 * SECOND) == NOW - 60 * SECOND
    assert stamped(0) == found.now
    assert "time-off" in found.device.trouble
    assert stamped(found.now + 86_400 * SECOND) == found.now
    assert found.ledger.dropped == {}


def test_a_trouble_is_told_at_once_then_now_and_then() -> None:
    found = Found()
    told = [len(found.take(Refused("d1", "malformed", "no JSON"), after_s=1)) for _ in range(25)]
    assert told[0] == 1
    assert sum(told) == 3
    assert "(21 times)" in found.device.trouble


def test_standing_is_told_when_it_changes(found: Found) -> None:
    assert len(found.take(Standing("d1", True))) == 1
    assert found.take(Standing("d1", True)) == []
    found.take(Standing("d1", False))
    assert found.device.available is False


def test_readings_stamped_here_never_share_a_time(found: Found) -> None:
    arrivals = found.take(*(Sample("d1", {"x": number}) for number in range(20)))
    times = [event.at for _, event in arrivals if isinstance(event, Reading)]
    assert len(set(times)) == 20
    assert times == sorted(times)


@given(st.text(max_size=80) | st.lists(st.text(max_size=70), max_size=12).map("/".join))
def test_every_identity_has_an_asset(key: str) -> None:
    topics.check_path(asset_of("acme", key))


def test_identities_that_look_alike_have_assets_of_their_own() -> None:
    keys = ["a b", "a-b", "a_b", "a+b", "ä b", "a/b", "0x00158D00018255DF"]
    assert len({asset_of("acme", key) for key in keys}) == len(keys)
    assert asset_of("zigbee2mqtt", "0x00158d00018255df") == "zigbee2mqtt/0x00158d00018255df"


def test_identities_too_long_or_too_deep_are_told_apart_too() -> None:
    deep = ["/".join("abcdefg") + f"/{last}" for last in "hi"]
    long = ["/".join(["x" * 50] * 5) + f"/{last}" for last in "hi"]
    assets = {asset_of("acme", key) for key in deep + long}
    assert len(assets) == 4
    assert all(topics.check_path(asset) for asset in assets)


# What is remembered


def kept(folder: Path) -> remembered.Devices:
    return remembered.Devices(folder / remembered.FILE, lambda: NOW)


def test_a_name_is_a_label_that_outlives_facts_and_restarts(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.take("acme/d1", Device(NOW, "0x12", "acme"))
    first.rename("acme/d1", "Feed pump")
    shown = kept(tmp_path).take("acme/d1", Device(NOW, "0x12 renamed at the device", "acme"))
    assert shown is not None
    assert shown.name == "Feed pump"
    assert kept(tmp_path).find("feed PUMP") == "acme/d1"
    again = kept(tmp_path)
    assert again.rename("acme/d1", "").name == "0x12"


def test_ignored_devices_stay_ignored(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.take("acme/d1", Device(NOW, "d1"))
    assert first.ignore("acme/d1", True).ignored
    assert kept(tmp_path).ignored == {"acme/d1"}
    kept(tmp_path).ignore("acme/d1", False)
    assert kept(tmp_path).ignored == frozenset()


def test_forgotten_devices_begin_anew(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.take("acme/d1", Device(NOW, "d1", units={"x": "W"}))
    first.rename("acme/d1", "Pump")
    first.forget("acme/d1")
    again = kept(tmp_path)
    assert again.known("acme/d1") is None
    with pytest.raises(MillwrightError, match="no device"):
        again.find("Pump")


def test_what_comes_and_goes_is_not_remembered(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.take("acme/d1", Device(NOW, "d1", available=True, trouble="flood"))
    first.write_due(NOW)
    facts = kept(tmp_path).known("acme/d1")
    assert facts is not None
    assert (facts.available, facts.trouble) == (None, "")


def test_a_damaged_file_is_set_aside_and_devices_are_found_anew(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.take("acme/d1", Device(NOW, "d1"))
    first.write()
    path = tmp_path / remembered.FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = kept(tmp_path)
    assert len(again) == 0
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_name_of_several_devices_is_no_name(tmp_path: Path) -> None:
    devices = kept(tmp_path)
    for asset in ("acme/d1", "acme/d2"):
        devices.take(asset, Device(NOW, "Pump"))
    with pytest.raises(MillwrightError, match="2 devices are called"):
        devices.find("pump")
    with pytest.raises(MillwrightError, match="cannot be a name"):
        devices.rename("acme/d1", "a\nb")
