"""Sparkplug's edge node and Home Assistant's discovery: what a host, which keeps the books, makes of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.channels.leaving import edge, home
from appliance.channels.leaving.edge import LATE_MS, REBIRTH, EdgeNode, Saying, wants_rebirth
from appliance.config.schema import Settable
from appliance.errors import EventError
from appliance.protocols import sparkplug
from appliance.protocols.sparkplug import Metric, Payload, Type, Verb

NOW_MS = 1_790_000_000_000


def reading(at_ms: int = NOW_MS, **values: float) -> dict[str, Any]:
    return {"at": at_ms * 1_000_000, "values": values}


class Host:
    """Checks what the standard demands of a node, and keeps the values."""

    def __init__(self) -> None:
        self.seq = -1
        self.names: dict[tuple[str, int], str] = {}
        self.values: dict[tuple[str, str], Any] = {}
        self.late: list[str] = []
        self.born: set[str] = set()

    def hear(self, said: list[Saying]) -> None:
        for topic, raw in said:
            address, payload = sparkplug.parse(topic), sparkplug.decode(raw)
            if address.verb is Verb.NBIRTH:
                self.seq = -1
                self.born.clear()
                self.names.clear()
                assert {metric.name for metric in payload.metrics} == {"bdSeq", REBIRTH}
            self.seq = (self.seq + 1) % 256
            assert payload.seq == self.seq
            if address.verb is Verb.DBIRTH:
                self.born.add(address.device)
            for metric in payload.metrics:
                self._take(address.device, address.verb, metric)

    def _take(self, device: str, verb: Verb, metric: Metric) -> None:
        if verb is Verb.DBIRTH:
            assert metric.name
            assert metric.alias is not None
            assert (device, metric.alias) not in self.names or self.names[(device, metric.alias)] == metric.name
            self.names[(device, metric.alias)] = metric.name
            self.values[(device, metric.name)] = metric.value
        elif verb is Verb.DDATA:
            assert device in self.born
            assert not metric.name
            name = self.names[(device, metric.alias or 0)]
            if metric.is_historical:
                self.late.append(name)
            else:
                self.values[(device, name)] = metric.value


def test_an_asset_is_born_before_its_data_and_again_with_a_new_metric() -> None:
    node, host = EdgeNode("plant", "box"), Host()
    host.hear(node.birth(3, NOW_MS))
    host.hear(node.say("reading", "line1/pump", "", reading(t=1.0), NOW_MS))
    first = node.say("reading", "line1/pump", "", reading(t=2.0), NOW_MS)
    assert [sparkplug.parse(topic).verb for topic, _ in first] == [Verb.DDATA]
    host.hear(first)
    host.hear(node.say("reading", "line1/pump", "", reading(t=3.0, p=4.0), NOW_MS))
    score = {"at": NOW_MS * 1_000_000, "score": 0.5, "threshold": 1.0, "stage": "alarming", "cause": "t", "model": "m"}
    host.hear(node.say("score", "line1/pump", "", score | {"version": "1", "device": "CPU"}, NOW_MS))
    alarm = {"at": NOW_MS * 1_000_000, "state": "unacknowledged", "active": True, "severity": "alarm", "cause": "t"}
    host.hear(node.say("alarm", "line1/pump", "anomaly", alarm, NOW_MS))
    values = {name: value for (device, name), value in host.values.items() if device == "line1:pump"}
    assert (values["t"], values["p"], values["Score/score"]) == (3.0, 4.0, 0.5)
    assert (values["Alarm/anomaly/state"], values["Alarm/anomaly/active"]) == ("unacknowledged", True)


def test_what_waited_is_historical_and_does_not_stand_in_a_birth() -> None:
    node, host = EdgeNode("plant", "box"), Host()
    host.hear(node.birth(1, NOW_MS))
    host.hear(node.say("reading", "pump", "", reading(t=9.0), NOW_MS))
    host.hear(node.say("reading", "pump", "", reading(NOW_MS - LATE_MS - 1, t=1.0), NOW_MS))
    assert host.late == ["t"]
    host.hear(node.birth(2, NOW_MS))
    assert host.values[("pump", "t")] == 9.0


def test_units_are_properties_and_a_new_one_is_a_new_birth() -> None:
    node = EdgeNode("plant", "box")
    node.birth(1, NOW_MS)
    node.say("reading", "pump", "", reading(t=9.0), NOW_MS)
    (said,) = node.say("device", "pump", "", {"units": {"t": "Cel"}}, NOW_MS)
    assert sparkplug.decode(said.payload).metrics[0].properties == {"engUnit": "°C"}
    assert node.say("device", "pump", "", {"units": {"t": "Cel"}}, NOW_MS) == []


@given(
    st.lists(
        st.one_of(
            st.just("birth"),
            st.tuples(
                st.sampled_from(["a", "b/c"]), st.dictionaries(st.sampled_from("xyz"), st.floats(-9, 9), min_size=1)
            ),
        ),
        max_size=300,
    )
)
def test_a_host_never_loses_track(steps: list[Any]) -> None:
    node, host = EdgeNode("plant", "box"), Host()
    host.hear(node.birth(0, NOW_MS))
    last: dict[tuple[str, str], float] = {}
    for step in steps:
        if step == "birth":
            host.hear(node.birth(1, NOW_MS))
        else:
            path, values = step
            host.hear(node.say("reading", path, "", reading(**values), NOW_MS))
            last |= {(path.replace("/", ":"), name): value for name, value in values.items()}
    assert {key: host.values[key] for key in last} == last


def test_deaths_and_rebirths() -> None:
    node = EdgeNode("plant", "box")
    death = node.death(7, NOW_MS)
    assert death.topic == "spBv1.0/plant/NDEATH/box"
    assert sparkplug.decode(death.payload).metrics[0].value == 7
    assert wants_rebirth(sparkplug.encode(Payload((Metric(REBIRTH, True, Type.BOOLEAN),))))
    assert not wants_rebirth(sparkplug.encode(Payload((Metric(REBIRTH, False, Type.BOOLEAN),))))
    with pytest.raises(EventError):
        wants_rebirth(b"\xff\xff\xff")
    with pytest.raises(EventError):
        EdgeNode("pl/ant", "box")


def test_a_flood_of_assets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "MAX_DEVICES", 2)
    node = EdgeNode("plant", "box")
    for name in ("a", "b"):
        assert node.say("reading", name, "", reading(t=1.0), NOW_MS)
    with pytest.raises(EventError) as error:
        node.say("reading", "c", "", reading(t=1.0), NOW_MS)
    assert error.value.reason == "too-many-assets"
    assert node.say("reading", "a", "", reading(t=2.0), NOW_MS)


# Home Assistant


def test_an_asset_is_a_device_with_right_classes_and_units() -> None:
    asset = home.Asset("line1/pump")
    assert asset.meet("reading", "", {"values": {"temp": 21.0, "energy": 1.0, "flow_lpm": 2.0, "n": 1.0, "x": 1.0}})
    assert not asset.meet("reading", "", {"values": {"temp": 22.0}})
    facts = {"name": "Pump", "maker": "KSB", "units": {"temp": "Cel", "energy": "kW.h", "x": "{steps}"}}
    assert asset.meet("device", "", facts)
    assert asset.meet("score", "", {})
    assert asset.meet("alarm", "flat-line", {})
    document = home.configuration("box", asset, "mw/box", "1.0")
    assert document["dev"]["name"] == "Pump"
    assert document["dev"]["via_device"] == "mw_box"
    found = document["cmps"]
    shown = {key: (one.get("dev_cla"), one.get("unit_of_meas"), one.get("stat_cla")) for key, one in found.items()}
    assert shown["point-temp"] == ("temperature", "°C", "measurement")
    assert shown["point-energy"] == ("energy", "kWh", "total_increasing")
    assert shown["point-flow_lpm"] == ("volume_flow_rate", "L/min", "measurement")
    assert shown["point-x"] == (None, "steps", "measurement")
    assert shown["point-n"] == (None, None, "measurement")
    assert shown["alarm"][0] == shown["alarm-flat-line"][0] == "problem"
    assert {one["p"] for key, one in found.items() if key.endswith("-ack")} == {"button"}
    assert {"score", "limit", "stage", "model", "computed"} <= found.keys()


def test_declared_points_are_switches_and_numbers() -> None:
    declared = [Settable("line1/pump", "speed", "number", 0.0, 50.0), Settable("line1/pump", "on", "switch")]
    asset = home.Asset("line1/pump", declared)
    asset.meet("device", "", {"units": {"speed": "Hz"}})
    found = home.configuration("box", asset, "mw/box", "1.0")["cmps"]
    number, switch = found["set-speed"], found["set-on"]
    assert (number["p"], number["min"], number["max"], number["step"]) == ("number", 0.0, 50.0, 0.01)
    assert (number["dev_cla"], number["unit_of_meas"]) == ("frequency", "Hz")
    assert "stat_cla" not in number  # a sensor's word, which Home Assistant refuses here
    assert number["cmd_tpl"].endswith(', "value": {{ value }}}')
    assert switch["p"] == "switch"
    assert json.loads(switch["pl_on"]) == {"asset": "line1/pump", "point": "on", "value": True}
    assert json.loads(switch["pl_off"]) == {"asset": "line1/pump", "point": "on", "value": False}
    assert number["cmd_t"] == switch["cmd_t"] == "mw/box/ask/set"
    assert number["stat_t"] == switch["stat_t"] == "mw/box/reading/line1/pump"


@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=12))
def test_identities_are_unique_and_fit(names: list[str]) -> None:
    slugs = [home.slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for slug in slugs)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_no_name_breaks_out_of_its_template(name: str) -> None:
    asset = home.Asset("pump")
    asset.meet("reading", "", {"values": {name: 1.0}})
    component = next(
        one for key, one in home.configuration("b", asset, "p", "1")["cmps"].items() if key.startswith("point-")
    )
    inner = component["val_tpl"].removeprefix("{{ value_json['values'].get(").removesuffix(") }}")
    assert not set("{}%") & set(inner)
