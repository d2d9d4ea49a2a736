"""Round trips: what a device of any dialect publishes is what is read, and what is set is what the device is sent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.connectors import dialects
from appliance.connectors.dialects._devices import Devices, Limits
from appliance.connectors.dialects.port import Dialect, Facts, Refused, Request, Sample, Standing
from appliance.events.ledger import Ledger
from appliance.events.schema import Reading
from appliance.protocols import sparkplug
from appliance.protocols.sparkplug import Metric, Payload, Type, Verb

NOW = 1_750_000_000_000_000_000
Values = dict[str, float]
Messages = list[tuple[str, bytes]]

names = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=10)
values = st.dictionaries(names, st.floats(-1e9, 1e9), min_size=1, max_size=6)
json = msgspec.json.encode


class Speaker(NamedTuple):
    """A device of a dialect: what it publishes for these values, and what the points are called then."""

    dialect: str
    says: Callable[[Values], Messages]
    called: Callable[[str], str] = str
    settings: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it


def zigbee(found: Values) -> Messages:
    device = {"ieee_address": "0x1", "friendly_name": "d"}
    return [("z/bridge/devices", json([device])), ("z/d", json(found))]


def tasmota(found: Values) -> Messages:
    told = {"t": "d", "ft": "%topic%/%prefix%/", "tp": ["cmnd", "stat", "tele"]}
    return [("tasmota/discovery/A0B1C2D3E4F5/config", json(told)), ("d/tele/SENSOR", json({"ENERGY": found}))]


def shelly1(found: Values) -> Messages:
    return [(f"shellies/d/meter/{name}", repr(value).encode()) for name, value in found.items()]


def shelly2(found: Values) -> Messages:
    told = {"src": "d", "method": "NotifyStatus", "params": {"em:0": found}}
    return [("d/events/rpc", json(told))]


def esphome(found: Values) -> Messages:
    said = [(f"d/sensor/{name}/state", repr(value).encode()) for name, value in found.items()]
    return [("esphome/discover/d", json({"name": "d"})), *said]


def homeassistant(found: Values) -> Messages:
    components = {name: {"p": "sensor", "val_tpl": f"{{{{ value_json.{name} }}}}"} for name in found}
    entry = {"dev": {"ids": ["d"]}, "cmps": components, "stat_t": "d/state"}
    return [("homeassistant/device/d/config", json(entry)), ("d/state", json(found))]


def born(found: Values) -> Messages:
    metrics = tuple(
        Metric(name, value, Type.DOUBLE, alias=number) for number, (name, value) in enumerate(found.items())
    )
    return [(sparkplug.topic("g", Verb.NBIRTH, "d"), sparkplug.encode(Payload(metrics, seq=0)))]


def thin_edge(found: Values) -> Messages:
    return [("te/device/d///m/", json(found))]


def mapped(found: Values) -> Messages:
    return [("plant/d/data", json({"inner": found}))]


RULES = {"rules": [{"topic": "plant/+/data", "device": "{1}"}]}
SPEAKERS = [
    Speaker("zigbee2mqtt", zigbee),
    Speaker("tasmota", tasmota, "ENERGY.{}".format),
    Speaker("shelly1", shelly1, "meter.{}".format),
    Speaker("shelly2", shelly2, "em:0.{}".format),
    Speaker("esphome", esphome, "sensor.{}".format),
    Speaker("homeassistant", homeassistant),
    Speaker("sparkplug", born),
    Speaker("thin_edge", thin_edge),
    Speaker("mapping", mapped, "inner.{}".format, RULES),
]
QUIET = {"online", "info", "command", "announce", "settings", "longpush", "source", "update", "time", "state"}


def made(name: str, settings: dict[str, Any]) -> Dialect:
    return dialects.make(name, msgspec.convert(settings, dialects.declared()[name]))


def test_every_dialect_is_here() -> None:
    assert {speaker.dialect for speaker in SPEAKERS} == set(dialects.declared())


@pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda speaker: speaker.dialect)
@given(found=values.filter(lambda found: not QUIET & found.keys()))
def test_what_is_published_is_what_is_read(speaker: Speaker, found: Values) -> None:
    dialect = made(speaker.dialect, speaker.settings)
    devices = Devices(speaker.dialect, Ledger(), Limits())
    read: Values = {}
    for topic, payload in speaker.says(found):
        outcomes = [
            one for one in dialect.take(topic, payload, NOW) if isinstance(one, Facts | Sample | Standing | Refused)
        ]
        for _, event in devices.take(outcomes, NOW):
            if isinstance(event, Reading):
                read |= event.values
    assert read == {speaker.called(name): value for name, value in found.items()}


def told(requests: Any) -> Request:
    (request,) = requests
    assert isinstance(request, Request)
    return request


@given(st.floats(-1e9, 1e9), st.integers(-(2**15), 2**15 - 1))
def test_what_is_set_is_what_a_sparkplug_node_is_sent(value: float, count: int) -> None:
    dialect = made("sparkplug", {})
    metrics = (Metric("level", 0.0, Type.DOUBLE), Metric("count", 0, Type.INT16), Metric("on", False, Type.BOOLEAN))
    dialect.take(sparkplug.topic("g", Verb.NBIRTH, "d"), sparkplug.encode(Payload(metrics, seq=0)), NOW)
    for point, wish in (("level", value), ("count", count), ("on", True)):
        (metric,) = sparkplug.decode(told(dialect.write("g/d", point, wish)).payload).metrics
        assert (metric.name, metric.value) == (point, wish)


@given(st.floats(-1e9, 1e9), st.booleans())
def test_what_is_set_is_what_a_zigbee_device_is_sent(value: float, switch: bool) -> None:
    exposes = [
        {"type": "numeric", "property": "level", "access": 7},
        {"type": "binary", "property": "lock", "access": 7, "value_on": "LOCK", "value_off": "UNLOCK"},
    ]
    device = {"ieee_address": "0x1", "friendly_name": "d", "definition": {"exposes": exposes}}
    dialect = made("zigbee2mqtt", {})
    dialect.take("z/bridge/devices", json([device]), NOW)
    assert msgspec.json.decode(told(dialect.write("0x1", "level", value)).payload) == {"level": value}
    lock = {"lock": "LOCK" if switch else "UNLOCK"}
    assert msgspec.json.decode(told(dialect.write("0x1", "lock", float(switch))).payload) == lock


@given(st.floats(-1e9, 1e9))
def test_what_is_set_is_what_a_mapped_device_is_sent(value: float) -> None:
    rule = {"topic": "plant/+/data", "device": "{1}", "write": "plant/{1}/set", "settable": ["level"]}
    dialect = made("mapping", {"rules": [rule]})
    dialect.take("plant/d/data", b'{"level": 1}', NOW)
    request = told(dialect.write("d", "level", value))
    assert (request.topic, msgspec.json.decode(request.payload)) == ("plant/d/set", {"level": value})
