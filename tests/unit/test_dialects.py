"""What the dialects understand, message by message, as devices send it; and what goes back."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import plugins
from appliance.connectors import dialects
from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import (
    Dialect,
    Facts,
    Listen,
    Mortal,
    Outcome,
    Refused,
    Request,
    Sample,
    Standing,
)
from appliance.errors import ConfigError, ConnectorError, EventError
from appliance.protocols import protobuf, sparkplug
from appliance.protocols.sparkplug import DataSet, Metric, Payload, Template, Type, Verb

NOW = 1_750_000_000_000_000_000
SECOND = 1_000_000_000

numbers = st.floats(-1e6, 1e6)
names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=12)


def made(name: str, **settings: Any) -> Dialect:
    return dialects.make(name, msgspec.convert(settings, dialects.declared()[name]))


def tell(dialect: Dialect, topic: str, said: Any, at: int = NOW) -> list[Outcome]:
    payload = said if isinstance(said, bytes) else msgspec.json.encode(said)
    return list(dialect.take(topic, payload, at))


def samples(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All values of all samples."""
    return {name: value for one in outcomes if isinstance(one, Sample) for name, value in one.values.items()}


def facts(outcomes: Sequence[Outcome]) -> Facts:
    return next(one for one in outcomes if isinstance(one, Facts))


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    return [one.reason for one in outcomes if isinstance(one, Refused)]


# Zigbee2MQTT

ADDRESS = "0x00158d00018255df"
PLUG = {
    "ieee_address": ADDRESS,
    "friendly_name": "hall/plug 1",
    "type": "Router",
    "software_build_id": "1.2",
    "definition": {
        "vendor": "Acme",
        "model": "TS011F",
        "exposes": [
            {"type": "switch", "features": [{"type": "binary", "name": "state", "property": "state", "access": 7,
             "value_on": "ON", "value_off": "OFF"}]},
            {"type": "numeric", "name": "power", "property": "power", "unit": "W", "access": 1},
            {"type": "numeric", "name": "linkquality", "property": "linkquality", "unit": "lqi", "access": 1},
            {"type": "composite", "name": "accel", "property": "accel", "features": [
             {"type": "numeric", "name": "x", "property": "x", "unit": "g0", "access": 1}]},
        ],
    },
}  # fmt: skip


@pytest.fixture
def zigbee() -> Dialect:
    dialect = made("zigbee2mqtt")
    tell(dialect, "zigbee2mqtt/bridge/devices", [{"type": "Coordinator", "ieee_address": "0x0"}, PLUG])
    return dialect


def test_zigbee_devices_introduce_themselves_whatever_the_base() -> None:
    found = tell(made("zigbee2mqtt"), "upstairs/bridge/devices", [PLUG])
    told = facts(found)
    assert (told.key, told.name, told.maker, told.model, told.version) == (
        ADDRESS,
        "hall/plug 1",
        "Acme",
        "TS011F",
        "1.2",
    )
    assert told.units == {"state": "", "power": "W", "accel.x": "g0"}
    assert told.settable == ("state",)
    assert Listen(("upstairs/hall/plug 1", "upstairs/hall/plug 1/availability")) in found


def test_zigbee_values_come_by_name_and_stay_with_the_address(zigbee: Dialect) -> None:
    said = {"state": "ON", "power": 12.5, "linkquality": 100, "accel": {"x": 0.1}, "update": {"state": "idle"}}
    (sample,) = tell(zigbee, "zigbee2mqtt/hall/plug 1", said)
    assert sample == Sample(ADDRESS, {"state": True, "power": 12.5, "accel.x": 0.1})
    tell(zigbee, "zigbee2mqtt/bridge/devices", [PLUG | {"friendly_name": "pump"}])
    assert tell(zigbee, "zigbee2mqtt/hall/plug 1", said) == []
    assert samples(tell(zigbee, "zigbee2mqtt/pump", {"power": 1})) == {"power": 1}


def test_zigbee_a_device_that_takes_the_name_of_one_that_is_gone(zigbee: Dialect) -> None:
    tell(zigbee, "zigbee2mqtt/bridge/devices", [PLUG | {"ieee_address": "0x2"}])
    assert samples(tell(zigbee, "zigbee2mqtt/hall/plug 1", {"power": 3})) == {"power": 3}


def test_zigbee_two_devices_that_swap_their_names(zigbee: Dialect) -> None:
    other = PLUG | {"ieee_address": "0x2"}
    for first, second in (("a", "b"), ("b", "a")):
        tell(zigbee, "zigbee2mqtt/bridge/devices", [PLUG | {"friendly_name": first}, other | {"friendly_name": second}])
    for name, key in (("b", ADDRESS), ("a", "0x2")):
        assert tell(zigbee, f"zigbee2mqtt/{name}", {"power": 3}) == [Sample(key, {"power": 3})]


def test_zigbee_standing(zigbee: Dialect) -> None:
    topic = "zigbee2mqtt/hall/plug 1/availability"
    assert tell(zigbee, topic, {"state": "offline"}) == [Standing(ADDRESS, False)]
    assert tell(zigbee, topic, b"online") == [Standing(ADDRESS, True)]
    assert tell(zigbee, "zigbee2mqtt/bridge/state", {"state": "offline"}) == [Standing(ADDRESS, False)]
    assert tell(zigbee, "zigbee2mqtt/bridge/devices", []) == [Standing(ADDRESS, False)]


def test_zigbee_writes_what_a_device_accepts(zigbee: Dialect) -> None:
    assert list(zigbee.write(ADDRESS, "state", 1.0)) == [Request("zigbee2mqtt/hall/plug 1/set", b'{"state":"ON"}')]
    with pytest.raises(ConnectorError):
        zigbee.write(ADDRESS, "power", 1.0)


def test_zigbee_one_address_at_two_bridges_stays_with_the_first(zigbee: Dialect) -> None:
    found = tell(zigbee, "other/bridge/devices", [PLUG])
    assert reasons(found) == ["id-reused"]
    assert samples(tell(zigbee, "zigbee2mqtt/hall/plug 1", {"power": 1})) == {"power": 1}


def test_zigbee_broken_json_names_its_device(zigbee: Dialect) -> None:
    (refused,) = tell(zigbee, "zigbee2mqtt/hall/plug 1", b'{"power": 12')
    assert isinstance(refused, Refused)
    assert (refused.key, refused.reason) == (ADDRESS, "malformed")


@given(st.dictionaries(names, numbers, min_size=1, max_size=8))
def test_zigbee_says_what_was_published(values: dict[str, float]) -> None:
    dialect = made("zigbee2mqtt", leave_out=[])
    tell(dialect, "z/bridge/devices", [PLUG])
    assert samples(tell(dialect, "z/hall/plug 1", values)) == values


# Tasmota

MAC = "A4CF12F03EAB"


def introduction(**changes: Any) -> dict[str, Any]:
    told = {"ip": "192.0.2.4", "dn": "Boiler", "fn": ["Boiler", None], "hn": "tasmota-F03EAB", "mac": MAC,
            "md": "Sonoff POW", "ofln": "Offline", "onln": "Online", "sw": "14.2.0", "t": "boiler",
            "ft": "%prefix%/%topic%/", "tp": ["cmnd", "stat", "tele"]}  # fmt: skip
    return told | changes


def test_tasmota_introduces_itself_and_speaks() -> None:
    dialect = made("tasmota")
    (told,) = tell(dialect, f"tasmota/discovery/{MAC}/config", introduction())
    assert isinstance(told, Facts)
    assert (told.key, told.name, told.maker, told.model, told.version) == (
        MAC,
        "Boiler",
        "Tasmota",
        "Sonoff POW",
        "14.2.0",
    )
    said = {"Time": "2026-01-01T00:00:00", "ENERGY": {"Power": 42, "Voltage": 230},
            "DS18B20": {"Id": "1", "Temperature": 70.5}, "TempUnit": "F"}  # fmt: skip
    found = tell(dialect, "tele/boiler/SENSOR", said)
    assert samples(found) == {"ENERGY.Power": 42, "ENERGY.Voltage": 230, "DS18B20.Temperature": 70.5}
    assert facts(found).units == {"ENERGY.Power": "W", "ENERGY.Voltage": "V", "DS18B20.Temperature": "F"}
    assert tell(dialect, "tele/boiler/LWT", b"Offline") == [Standing(MAC, False)]
    assert samples(tell(dialect, "stat/boiler/POWER", b"ON")) == {"POWER": "ON"}


def test_tasmota_any_full_topic_is_followed() -> None:
    dialect = made("tasmota")
    told = introduction(ft="site/%topic%/%prefix%/%id%", tp=["do", "is", "tells"])
    found = tell(dialect, f"tasmota/discovery/{MAC}/config", told)
    assert Listen(("site/boiler/tells/F03EAB/+", "site/boiler/is/F03EAB/+")) in found
    assert samples(tell(dialect, "site/boiler/tells/F03EAB/SENSOR", {"ANALOG": {"A0": 8}})) == {"ANALOG.A0": 8}
    assert list(dialect.write(MAC, "POWER1", 0.0)) == [Request("site/boiler/do/F03EAB/POWER1", b"OFF")]


def test_tasmota_is_heard_without_an_introduction_after_a_while() -> None:
    dialect = made("tasmota")
    said = {"ANALOG": {"A0": 8}}
    assert tell(dialect, "tele/pump/SENSOR", said) == []
    assert samples(tell(dialect, "tele/pump/SENSOR", said, NOW + 10 * SECOND)) == {"ANALOG.A0": 8}


def test_tasmota_two_devices_of_one_topic() -> None:
    dialect = made("tasmota")
    tell(dialect, f"tasmota/discovery/{MAC}/config", introduction())
    assert reasons(tell(dialect, "tasmota/discovery/A4CF12000000/config", introduction())) == ["id-reused"]


def test_tasmota_devices_behind_a_bridge_are_devices() -> None:
    dialect = made("tasmota")
    tell(dialect, f"tasmota/discovery/{MAC}/config", introduction())
    said = {"ZbReceived": {"Lamp": {"Device": "0x5ADF", "Name": "Lamp", "Dimmer": 254, "Endpoint": 1}}}
    found = tell(dialect, "tele/boiler/SENSOR", said)
    assert next(one for one in found if isinstance(one, Sample)) == Sample(
        f"{MAC}/0x5ADF", {"Dimmer": 254, "Name": "Lamp"}
    )


@pytest.mark.parametrize("changes", [{"t": ""}, {"ft": "%topic%/+/%prefix%"}, {"t": "a/#"}, {"ft": "%unknown%"}])
def test_tasmota_an_introduction_that_would_listen_to_others_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EventError):
        tell(made("tasmota"), f"tasmota/discovery/{MAC}/config", introduction(**changes))


def test_tasmota_payloads_of_its_own_pages(shared_data: Path) -> None:
    lines = (shared_data / "protocols" / "tasmota" / "payloads.tsv").read_text("utf-8").splitlines()[1:]
    read = broken = 0
    for line in lines:
        topic, payload, _, validity = line.split("\t")
        parts = topic.split("/")
        if len(parts) != 3 or parts[0] != "tele" or parts[2] not in ("SENSOR", "STATE", "ENERGY"):
            continue
        dialect = made("tasmota")
        tell(dialect, "tele/x/LWT", b"Online")
        found = tell(dialect, topic, payload.encode(), NOW + 10 * SECOND)
        if validity == "broken":
            assert reasons(found) == ["malformed"], payload
            broken += 1
        else:
            assert not reasons(found), payload
            read += any(isinstance(value, int | float) for value in samples(found).values())
    assert broken > 0
    assert read > 25


# Shelly


def test_shelly1_announces_and_speaks() -> None:
    dialect, key = made("shelly1"), "shellyplug-s-DDEEFF"
    told = facts(
        tell(dialect, "shellies/announce", {"id": key, "model": "SHPLG-S", "mac": "AABBCCDDEEFF", "fw_ver": "1.14"})
    )
    assert (told.key, told.maker, told.model, told.version, told.proof) == (
        key,
        "Shelly",
        "SHPLG-S",
        "1.14",
        "AABBCCDDEEFF",
    )
    found = tell(dialect, f"shellies/{key}/relay/0/power", b"12.34")
    assert samples(found) == {"relay.0.power": 12.34}
    assert facts(found).units == {"relay.0.power": "W"}
    assert facts(tell(dialect, f"shellies/{key}/relay/0", b"on")).settable == ("relay.0",)
    assert facts(tell(dialect, f"shellies/{key}/ext_temperatures/0", b"20.5")).units == {"ext_temperatures.0": "°C"}
    assert tell(dialect, f"shellies/{key}/online", b"false") == [Standing(key, False)]
    assert tell(dialect, f"shellies/{key}/relay/0/command", b"on") == []
    assert list(dialect.greet()) == [Request("shellies/command", b"announce")]
    assert list(dialect.write(key, "relay.0", 0)) == [Request(f"shellies/{key}/relay/0/command", b"off")]


def test_shelly2_is_asked_and_answers() -> None:
    dialect, key = made("shelly2"), "shellyplus1pm-aabbccddeeff"
    (asked,) = tell(dialect, f"{key}/online", b"true")
    assert isinstance(asked, Request)
    assert asked.topic == f"{key}/rpc"
    call = msgspec.json.decode(asked.payload)
    assert call["method"] == "Shelly.GetStatus"
    status = {"switch:0": {"id": 0, "apower": 5.5, "output": True, "temperature": {"tC": 30.3, "tF": 86.6}},
              "sys": {"mac": "AABBCCDDEEFF", "uptime": 5}, "wifi": {"rssi": -60}}  # fmt: skip
    found = tell(dialect, f"{call['src']}/rpc", {"id": call["id"], "src": key, "dst": call["src"], "result": status})
    assert samples(found) == {"switch:0.apower": 5.5, "switch:0.output": True, "switch:0.temperature.tC": 30.3}
    assert any(isinstance(one, Facts) and one.units.get("switch:0.temperature.tC") == "°C" for one in found)
    assert any(isinstance(one, Facts) and one.settable == ("switch:0.output",) for one in found)
    notified = {"src": key, "method": "NotifyStatus", "params": {"ts": 1.5, "switch:0": {"id": 0, "apower": 6.5}}}
    assert samples(tell(dialect, f"{key}/events/rpc", notified)) == {"switch:0.apower": 6.5}
    assert samples(tell(dialect, f"{key}/status/switch:0", {"id": 0, "voltage": 230})) == {"switch:0.voltage": 230}
    assert tell(dialect, f"{key}/online", b"false") == [Standing(key, False)]
    (order,) = dialect.write(key, "switch:0.output", 1.0)
    assert msgspec.json.decode(order.payload)["params"] == {"id": 0, "on": True}


def test_shelly2_one_prefix_of_two_devices() -> None:
    dialect = made("shelly2")
    said = {"src": "one", "method": "NotifyStatus", "params": {"switch:0": {"apower": 6.5}}}
    tell(dialect, "hall/events/rpc", said)
    assert reasons(tell(dialect, "hall/events/rpc", said | {"src": "two"})) == ["id-reused"]


def test_shelly_status_of_real_devices(shared_data: Path) -> None:
    files = sorted((shared_data / "protocols" / "shelly").glob("gen2_*.json"))
    assert len(files) >= 5
    for file in files:
        told = msgspec.json.decode(file.read_bytes())
        dialect, key = made("shelly2"), told["shelly"]["id"]
        found = tell(dialect, "millwright/shelly/rpc", {"id": f"mw {key}", "src": key, "result": told["status"]})
        switches = {name: one for name, one in told["status"].items() if name.startswith("switch:")}
        values = samples(found)
        assert not reasons(found)
        for name, one in switches.items():
            assert values[f"{name}.output"] == one["output"]
            if "apower" in one:
                assert values[f"{name}.apower"] == one["apower"]
        named = facts(tell(dialect, "millwright/shelly/rpc", {"id": f"mw {key}", "src": key, "result": told["shelly"]}))
        assert (named.model, named.version) == (told["shelly"]["model"], told["shelly"]["ver"])


# ESPHome


def test_esphome_node() -> None:
    dialect = made("esphome")
    told = {"name": "hall", "friendly_name": "Hall", "mac": "a0b1c2d3e4f5", "version": "2026.5", "board": "esp32dev"}
    found = tell(dialect, "esphome/discover/hall", told)
    assert (facts(found).key, facts(found).name, facts(found).model) == ("hall", "Hall", "esp32dev")
    assert Listen(("hall/+/+/state", "hall/status")) in found
    entry = {
        "name": "T",
        "stat_t": "hall/sensor/t/state",
        "unit_of_meas": "°C",
        "dev": {"name": "hall", "sw": "2026.5 (ESPHome)"},
    }
    assert facts(tell(dialect, "homeassistant/sensor/hall/t/config", entry)).units == {"sensor.t": "°C"}
    assert samples(tell(dialect, "hall/sensor/t/state", b"21.5")) == {"sensor.t": 21.5}
    assert samples(tell(dialect, "hall/light/l/state", {"state": "ON", "brightness": 7})) == {
        "light.l": "ON",
        "light.l.brightness": 7,
    }
    assert tell(dialect, "hall/status", b"offline") == [Standing("hall", False)]
    assert list(dialect.write("hall", "switch.s", 1)) == [Request("hall/switch/s/command", b"ON")]
    assert reasons(tell(dialect, "esphome/discover/hall", told | {"mac": "ffffffffffff"})) == ["id-reused"]


# Home Assistant discovery


def test_homeassistant_entities_and_devices() -> None:
    dialect = made("homeassistant")
    device = {"ids": ["x1"], "name": "Meter", "mf": "Acme", "mdl": "M2", "sw": "3"}
    entry = {"name": "Power", "~": "meter", "stat_t": "~/state", "val_tpl": "{{ value_json.p['now'] | float }}",
             "unit_of_meas": "kW", "avty_t": "~/lwt", "uniq_id": "x1_p", "obj_id": "power", "dev": device}  # fmt: skip
    found = tell(dialect, "homeassistant/sensor/x1/power/config", entry)
    told = facts(found)
    assert (told.key, told.name, told.maker, told.model, told.units) == ("x1", "Meter", "Acme", "M2", {"power": "kW"})
    assert Listen(("meter/state", "meter/lwt")) in found
    assert tell(dialect, "meter/state", {"p": {"now": 1.5}}) == [Sample("x1", {"power": 1.5})]
    assert tell(dialect, "meter/lwt", b"online") == [Standing("x1", True)]
    assert tell(dialect, "homeassistant/sensor/x1/power/config", b"") == []
    assert tell(dialect, "meter/state", {"p": {"now": 1.5}}) == []


def test_homeassistant_entities_of_one_topic_are_written_anew_one_by_one() -> None:
    dialect = made("homeassistant")

    def announce(point: str) -> list[Outcome]:
        entry = {"stat_t": "x/state", "val_tpl": f"{{{{ value_json.{point} }}}}", "obj_id": point, "dev": {"ids": "x"}}
        return tell(dialect, f"homeassistant/sensor/x/{point}/config", entry)

    for _ in range(2):  # as after each connection
        for point in "abc":
            announce(point)
        assert tell(dialect, "x/state", {"a": 1, "b": 2, "c": 3}) == [Sample("x", {"a": 1, "b": 2, "c": 3})]
    tell(dialect, "homeassistant/sensor/x/b/config", b"")
    assert tell(dialect, "x/state", {"a": 1, "b": 2, "c": 3}) == [Sample("x", {"a": 1, "c": 3})]


def test_homeassistant_device_form() -> None:
    dialect = made("homeassistant")
    entry = {
        "dev": {"ids": "b2", "name": "Boiler"},
        "o": {"name": "acme"},
        "cmps": {
            "t": {"p": "sensor", "unit_of_meas": "°F", "val_tpl": "{{ value_json.t }}", "uniq_id": "b2t"},
            "s": {"p": "switch", "cmd_t": "b2/set", "val_tpl": "{{ value_json.s }}", "pl_on": "1", "pl_off": "0"},
        },
        "stat_t": "b2/state",
    }
    assert facts(tell(dialect, "homeassistant/device/b2/config", entry)).settable == ("s",)
    assert tell(dialect, "b2/state", {"t": 70, "s": 1}) == [Sample("b2", {"t": 70, "s": True})]
    assert list(dialect.write("b2", "s", 0)) == [Request("b2/set", b"0")]


@pytest.mark.parametrize(
    "entry",
    [
        {"stat_t": "zigbee2mqtt/x", "dev": {"ids": ["zigbee2mqtt_0x1"]}},
        {"stat_t": "a/b", "o": {"name": "Millwright"}},
        {"stat_t": "mw/v1/score/a"},
        {"stat_t": "hall/sensor/t/state", "dev": {"sw": "esphome 2026.5"}},
        {"stat_t": "a/+/b"},
    ],
)
def test_homeassistant_leaves_to_others_what_is_theirs(entry: dict[str, Any]) -> None:
    assert tell(made("homeassistant"), "homeassistant/sensor/x/config", entry) == []


def test_homeassistant_a_template_that_computes_is_told() -> None:
    entry = {"stat_t": "a/b", "val_tpl": "{{ value_json.a / 10 }}"}
    assert reasons(tell(made("homeassistant"), "homeassistant/sensor/x/config", entry)) == ["template"]


# Sparkplug B

BIRTH = Payload(
    (
        Metric("bdSeq", 1, Type.INT64),
        Metric("temperature", 20.5, Type.DOUBLE, alias=1, properties={"engUnit": "°C"}),
        Metric("count", -3, Type.INT16, alias=2),
        Metric("Node Control/Rebirth", False, Type.BOOLEAN),
    ),
    timestamp=NOW // 10**6,
    seq=0,
)


def spark(dialect: Dialect, verb: Verb, payload: Payload, device: str = "", at: int = NOW) -> list[Outcome]:
    return tell(dialect, sparkplug.topic("g", verb, "n", device), sparkplug.encode(payload), at)


@pytest.fixture
def born() -> Dialect:
    dialect = made("sparkplug")
    spark(dialect, Verb.NBIRTH, BIRTH)
    return dialect


def is_rebirth(outcome: Outcome) -> bool:
    if not isinstance(outcome, Request):
        return False
    (metric,) = sparkplug.decode(outcome.payload).metrics
    return (outcome.topic, metric.name, metric.value) == ("spBv1.0/g/NCMD/n", "Node Control/Rebirth", True)


def test_sparkplug_birth() -> None:
    found = spark(made("sparkplug"), Verb.NBIRTH, BIRTH)
    assert facts(found).units == {"temperature": "°C", "count": ""}
    assert Standing("g/n", True) in found
    assert found[-1] == Sample("g/n", {"temperature": 20.5, "count": -3}, NOW // 10**6 * 10**6)


def test_sparkplug_data_by_alias(born: Dialect) -> None:
    # Tahu leaves name and type out of data; the value travels as it would in a birth.
    metric = protobuf.put(2, 2) + protobuf.put(10, 0xFFFFFFFE)
    data = protobuf.put(1, 5) + protobuf.put(2, metric) + protobuf.put(3, 1)
    assert tell(born, "spBv1.0/g/NDATA/n", data) == [Sample("g/n", {"count": -2}, 5_000_000)]


def test_sparkplug_a_gap_is_told_and_a_rebirth_is_asked_for_once_in_a_while(born: Dialect) -> None:
    data = Metric("temperature", 21.0, Type.DOUBLE)
    found = spark(born, Verb.NDATA, Payload((data,), seq=5))
    assert reasons(found) == ["sequence"]
    assert any(map(is_rebirth, found))
    assert samples(found) == {"temperature": 21.0}
    again = spark(born, Verb.NDATA, Payload((data,), seq=9), at=NOW + SECOND)
    assert reasons(again) == ["sequence"]
    assert not any(map(is_rebirth, again))
    assert any(map(is_rebirth, spark(born, Verb.NDATA, Payload((data,), seq=2), at=NOW + 20 * SECOND)))


def test_sparkplug_a_host_tells_that_it_is_there_and_contradicts_who_says_otherwise() -> None:
    dialect = made("sparkplug", groups=["g"], host="us")
    assert isinstance(dialect, Mortal)
    will = dialect.will(5_000_000_000)
    assert will == Request("spBv1.0/STATE/us", b'{"online":false,"timestamp":5000}', stands=True)
    told = [Request("spBv1.0/STATE/us", b'{"online":true,"timestamp":5000}', stands=True)]
    assert dialect.greet() == told
    assert set(dialect.filters) == {"spBv1.0/g/#", "spBv1.0/STATE/us"}
    assert tell(dialect, "spBv1.0/STATE/us", will.payload) == told
    assert tell(dialect, "spBv1.0/STATE/us", told[0].payload) == []
    assert tell(dialect, "spBv1.0/STATE/them", will.payload) == []
    with pytest.raises(EventError):
        tell(dialect, "spBv1.0/STATE/us", b"OFFLINE")


def test_sparkplug_is_no_host_unless_it_is_told(born: Dialect) -> None:
    assert isinstance(born, Mortal)
    assert born.will(1) is None
    assert born.greet() == ()
    assert tell(born, "spBv1.0/STATE/them", b"{broken") == []


def test_sparkplug_numbers_wrap(born: Dialect) -> None:
    data = Metric("temperature", 21.0, Type.DOUBLE)
    for number in [*range(1, 256), 0, 1]:
        assert not reasons(spark(born, Verb.NDATA, Payload((data,), seq=number)))


def test_sparkplug_data_before_a_birth_asks_for_one() -> None:
    found = spark(made("sparkplug"), Verb.DDATA, Payload((Metric(alias=1, value=1),), seq=1), "d")
    assert reasons(found) == ["no-birth"]
    assert any(map(is_rebirth, found))


def test_sparkplug_deaths(born: Dialect) -> None:
    spark(born, Verb.DBIRTH, Payload((Metric("p", 1.0, Type.DOUBLE),), seq=1), "d")
    assert spark(born, Verb.NDEATH, Payload((Metric("bdSeq", 0, Type.INT64),))) == [], "the will of an older session"
    assert spark(born, Verb.DDEATH, Payload(seq=2), "d") == [Standing("g/n/d", False)]
    dead = spark(born, Verb.NDEATH, Payload((Metric("bdSeq", 1, Type.INT64),)))
    assert dead == [Standing("g/n", False), Standing("g/n", False), Standing("g/n/d", False)]
    assert reasons(spark(born, Verb.NDATA, Payload(seq=3))) == ["no-birth"]


def test_sparkplug_data_sets_and_templates(born: Dialect) -> None:
    table = DataSet(("a", "b"), (Type.INT32, Type.STRING), ((1, "x"), (2, "y")))
    motor = Template(
        (Metric("rpm", 1500, Type.INT32), Metric("t", Template((Metric("c", 60.5, Type.FLOAT),)), Type.TEMPLATE))
    )
    metrics = (Metric("table", table, Type.DATASET), Metric("motor", motor, Type.TEMPLATE))
    definition = Metric("_types_/motor", Template(motor.metrics, is_definition=True), Type.TEMPLATE)
    found = spark(born, Verb.DBIRTH, Payload((*metrics, definition), seq=1), "d")
    assert samples(found) == {"table.a": 2, "table.b": "y", "motor/rpm": 1500, "motor/t/c": 60.5}


def test_sparkplug_history_and_strangers_are_counted(born: Dialect) -> None:
    old = Metric("temperature", 1.0, Type.DOUBLE, is_historical=True)
    found = spark(born, Verb.NDATA, Payload((old, Metric("unknown", 1.0, Type.DOUBLE)), seq=1))
    assert sorted(reasons(found)) == ["historical", "unknown-metric"]
    assert samples(found) == {}


def test_sparkplug_an_alias_of_two_metrics_is_told() -> None:
    metrics = (Metric("a", 1, Type.INT32, alias=1), Metric("b", 2, Type.INT32, alias=1))
    assert reasons(spark(made("sparkplug"), Verb.NBIRTH, Payload(metrics, seq=0))) == ["id-reused"]


def test_sparkplug_writes_with_the_type_of_the_birth(born: Dialect) -> None:
    (order,) = born.write("g/n", "count", 7.2)
    (metric,) = sparkplug.decode(order.payload).metrics
    assert (order.topic, metric.value, metric.datatype) == ("spBv1.0/g/NCMD/n", 7, Type.INT16)


@given(st.dictionaries(names, numbers, min_size=1, max_size=8))
def test_sparkplug_says_what_was_sent(values: dict[str, float]) -> None:
    metrics = tuple(Metric(name, value, Type.DOUBLE, alias=index) for index, (name, value) in enumerate(values.items()))
    dialect = made("sparkplug")
    assert samples(spark(dialect, Verb.NBIRTH, Payload(metrics, seq=0))) == values
    by_alias = tuple(Metric(alias=one.alias, value=one.value, datatype=Type.DOUBLE) for one in metrics)
    assert samples(spark(dialect, Verb.NDATA, Payload(by_alias, seq=1))) == values


# thin-edge.io


def test_thin_edge() -> None:
    dialect = made("thin_edge")
    assert (
        facts(tell(dialect, "te/device/child1//", {"@type": "child-device", "name": "Press", "type": "P7"})).name
        == "Press"
    )
    said = {"temperature": 25, "phases": {"l1": 1.5}, "time": "2026-01-01T00:00:00Z"}
    (sample,) = tell(dialect, "te/device/child1///m/environment", said)
    assert sample == Sample(
        "child1", {"environment.temperature": 25, "environment.phases.l1": 1.5}, 1_767_225_600 * SECOND
    )
    meta = tell(dialect, "te/device/child1///m/environment/meta", {"temperature": {"unit": "°C"}})
    assert facts(meta).units == {"environment.temperature": "°C"}
    assert tell(dialect, "te/device/main/service/mapper/status/health", {"status": "down"}) == [
        Standing("main/service/mapper", False)
    ]


# A declared mapping


def test_mapping() -> None:
    rule = {"topic": "plant/+/+/telemetry", "device": "{1}/{2}", "maker": "Acme", "time": "meta.ts",
            "points": {"temperature": "data.t"}, "units": {"temperature": "°C"}, "write": "plant/{1}/{2}/set",
            "settable": ["temperature"]}  # fmt: skip
    dialect = made("mapping", rules=[rule])
    found = tell(dialect, "plant/hall/press/telemetry", {"data": {"t": 7.5, "x": 1}, "meta": {"ts": 1750000000}})
    assert found == [
        Facts("hall/press", "hall/press", "Acme", units={"temperature": "°C"}, settable=("temperature",)),
        Sample("hall/press", {"temperature": 7.5}, 1_750_000_000 * SECOND),
    ]
    assert list(dialect.write("hall/press", "temperature", 8)) == [
        Request("plant/hall/press/set", b'{"temperature":8}')
    ]
    assert reasons(tell(dialect, "plant/hall/press/telemetry", {"data": {}, "meta": {"ts": 1}})) == ["empty"]


def test_mapping_of_bare_values() -> None:
    dialect = made("mapping", rules=[{"topic": "tank/#", "device": "tank"}])
    assert samples(tell(dialect, "tank/level", b"61.5")) == {"value": 61.5}


def test_mapping_a_wildcard_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="no wildcard 2"):
        made("mapping", rules=[{"topic": "a/+", "device": "{2}"}])


# What a hostile publisher can make a dialect remember


def flood(dialect: str, number: int) -> tuple[str, Any]:
    """A message with a name that was never heard before."""
    match dialect:
        case "zigbee2mqtt":
            return f"b{number}/bridge/devices", [{"ieee_address": f"{number}", "friendly_name": f"d{number}"}]
        case "tasmota":
            return f"tele/t{number}/SENSOR", {
                f"v{number}": number,
                "ZbReceived": {f"0x{number}": {"Device": f"{number}"}},
            }
        case "shelly1":
            return f"shellies/s{number}/relay/0/power", number
        case "shelly2":
            told = {"switch:0": {f"v{number}": number}}
            return "hall/events/rpc", {"src": "hall", "method": "NotifyStatus", "params": told}
        case "esphome":
            return f"esphome/discover/e{number}", {"name": f"e{number}", "mac": f"{number:012}"}
        case "homeassistant":
            entry = {"stat_t": f"s/{number}", "avty_t": f"a/{number}", "dev": {"ids": [f"{number % 100}"]}}
            return f"homeassistant/sensor/n{number % 10}/config", entry
        case "sparkplug":
            birth = Payload((Metric(f"m{number}", 1, Type.INT32, alias=number),), seq=number % 256)
            return f"spBv1.0/g/{'DBIRTH' if number else 'NBIRTH'}/n{f'/d{number}' if number else ''}", sparkplug.encode(
                birth
            )
        case "mapping":
            return f"plant/{number}", number
    return f"te/device/d{number}///m/", {"t": number}


def remembered(thing: Any, depth: int = 3) -> int:
    """Entries of all that an object holds."""
    if isinstance(thing, dict | set | list):
        inner = thing.values() if isinstance(thing, dict) else thing
        return len(thing) + (sum(remembered(one, depth - 1) for one in inner) if depth else 0)
    return (
        sum(remembered(one, depth - 1) for one in vars(thing).values()) if depth and hasattr(thing, "__dict__") else 0
    )


@pytest.mark.parametrize("name", sorted(dialects.declared()))
def test_a_flood_of_names_does_not_fill_the_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = plugins.load("appliance.connectors.dialects", name)
    for bound in [word for word in vars(plugin) if word.startswith("MAX_") and word != "MAX_ANNOUNCEMENT"]:
        if isinstance(getattr(plugin, bound), int) and bound not in ("MAX_PAYLOAD", "MAX_LEVELS", "MAX_EXPOSES"):
            monkeypatch.setattr(plugin, bound, 20)
    monkeypatch.setattr(_json, "MAX_POINTS", 20)
    rules = {"rules": [{"topic": "plant/+", "device": "{1}"}]} if name == "mapping" else {}
    dialect = made(name, **rules)
    sizes = []
    for number in range(1500):
        with contextlib.suppress(EventError):
            tell(dialect, *flood(name, number), at=NOW + number * SECOND)
        if number in (700, 1499):
            sizes.append(remembered(dialect))
    assert sizes[1] <= sizes[0] + 5, "it goes on growing"
