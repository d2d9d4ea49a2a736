"""What every dialect keeps to: settings that explain themselves, hostile messages that cost what they weigh."""

import contextlib
import re
import textwrap
import tomllib
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import plugins
from appliance.bus import filters as topic_filters
from appliance.config.document import Document
from appliance.connectors import dialects
from appliance.connectors.dialects import _devices
from appliance.connectors.dialects._devices import Devices
from appliance.connectors.dialects.port import Dialect, Facts, Listen, Outcome, Refused, Request, Sample, Standing
from appliance.errors import ConfigError, ConnectorError, EventError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Kind, Reading

NAMES = plugins.names("appliance.connectors.dialects")
NOW = 1_750_000_000_000_000_000
RULES = [{"topic": "plant/+/#", "device": "{1}"}]


def made(name: str) -> Dialect:
    if name != "mapping":
        return dialects.make(name)
    return dialects.make(name, msgspec.convert({"rules": RULES}, dialects.declared()[name]))


# Topics near those that the dialects listen to, and payloads near those that devices send.
WORDS = """
    zigbee2mqtt bridge devices state availability tele stat cmnd tasmota discovery SENSOR STATE LWT RESULT config
    A0B1C2D3E4F5 shellies announce info online relay 0 power events rpc status switch:0 millwright shelly esphome
    discover node sensor binary_sensor temp command homeassistant device spBv1.0 group NBIRTH DBIRTH NDATA DDATA NDEATH
    DDEATH NCMD te main m environment meta twin hardware health plant x
"""
words = st.sampled_from(WORDS.split())
topic_texts = st.lists(words, min_size=1, max_size=7).map("/".join)
KEYS = """
    t ft tp dn mac id src method params result ieee_address friendly_name definition exposes name unit type features
    property value_on access vendor model dev o cmps stat_t val_tpl unit_of_meas ids sw platform ENERGY Temperature
    TempUnit ZbReceived Device StatusSNS POWER switch:0 apower temperature tC time status state rules
"""
keys = st.sampled_from(KEYS.split())
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(["ON", "online", "°C", "numeric", "binary", "{{ value_json.t }}", "NotifyStatus", "a/b", "+/#"]),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=20,
)
payloads = st.one_of(
    st.binary(max_size=60),
    trees.map(lambda tree: msgspec.json.encode(tree, enc_hook=str) if not _too_large(tree) else b"{}"),
    st.sampled_from(
        [b"", b"ON", b"online", b"true", b"21.5", b"1e999", b"nan", b'{"a":1e999}', b"[" * 5000, b"{" * 9000]
    ),
)


def _too_large(tree: Any) -> bool:
    return bool(re.search(r"\d{19}", repr(tree)))  # integers that msgspec does not write


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_its_settings_say_what_they_mean(name: str) -> None:
    kind = dialects.declared()[name]
    assert kind.__doc__
    for field in msgspec.inspect.type_info(kind).fields:
        assert isinstance(field.type, msgspec.inspect.Metadata), f"{field.name} has no description"


def test_its_docstring_shows_a_configuration_that_is_valid(name: str) -> None:
    plugin = plugins.load("appliance.connectors.dialects", name)
    shown = re.search(r"(?m)^(    \[\[?dialects\..*(?:\n(?:    .*)?)*)", plugin.__doc__ or "")
    assert shown, "the docstring shows no [dialects.NAME]"
    text = textwrap.dedent(shown[1])
    (found,) = dialects.spoken(Document("shown", text), [name], tomllib.loads(text)["dialects"])
    assert found.name == name


def test_its_name_is_that_of_its_file_and_its_filters_stand_in_one_session(name: str) -> None:
    dialect = made(name)
    assert dialect.name == name
    topic_filters.check(dialect.filters)


def test_a_dialect_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match="no dialect 'zigbee'"):
        dialects.spoken(Document("box.toml", ""), ["zigbee"], {})


@settings(max_examples=150)
@given(st.sampled_from(NAMES), st.lists(st.tuples(topic_texts, payloads), max_size=12))
def test_whatever_arrives_is_understood_or_refused(name: str, messages: list[tuple[str, bytes]]) -> None:
    dialect, ledger = made(name), Ledger()
    devices = Devices(name, ledger, _devices.Limits(20))
    for second, (topic, payload) in enumerate(messages):
        now = NOW + second * 10**9
        outcomes: Sequence[Outcome] = ()
        with contextlib.suppress(EventError):
            outcomes = dialect.take(topic, payload, now)
        for outcome in outcomes:
            check(outcome)
        said = [one for one in outcomes if isinstance(one, Facts | Sample | Standing | Refused)]
        arrivals = devices.take(said, now)
        ledger.processed += len(arrivals)
        for asset, event in arrivals:
            assert topics.parse(topics.topic(Kind.READING, asset)).path == asset
            if isinstance(event, Reading):
                assert codec.decode_reading(codec.encode(event), now) == event
                codec.check_points(list(event.values))
            else:
                assert codec.decode(Kind.DEVICE, codec.encode(event), now) == event
    assert ledger.received == ledger.processed + sum(ledger.dropped.values())
    assert len(devices) <= 20


def check(outcome: object) -> None:
    match outcome:
        case Request(topic, payload):
            assert not set("+#\0") & set(topic)
            assert isinstance(payload, bytes)
        case Listen(filters):
            for one in filters:
                topic_filters._check_form(one)
        case Facts() | Sample() | Standing() | Refused():
            assert isinstance(outcome.key, str)
        case _:
            pytest.fail(f"{outcome!r} is no outcome")


def test_a_point_that_nobody_knows_cannot_be_set(name: str) -> None:
    with pytest.raises(ConnectorError) as error:
        made(name).write("nobody", "nothing", 1.0)
    assert error.value.remedy
