"""Sparkplug B payloads: what is written is read again, and hostile bytes are refused with a reason."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import EventError
from appliance.protocols import protobuf, sparkplug
from appliance.protocols.sparkplug import DataSet, Metric, Payload, Template, Type, Verb

WHOLE = {
    Type.INT8: (-128, 127),
    Type.INT16: (-(2**15), 2**15 - 1),
    Type.INT32: (-(2**31), 2**31 - 1),
    Type.INT64: (-(2**63), 2**63 - 1),
    Type.UINT8: (0, 255),
    Type.UINT16: (0, 2**16 - 1),
    Type.UINT32: (0, 2**32 - 1),
    Type.UINT64: (0, 2**64 - 1),
    Type.DATETIME: (0, 2**63),
}
REASONS = ("", "malformed", "shape", "point-name", "too-many-points")
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def plain(kind: Type) -> st.SearchStrategy[sparkplug.Plain]:
    if kind in WHOLE:
        return st.integers(*WHOLE[kind])
    if kind is Type.FLOAT:
        return st.floats(width=32, allow_nan=False)
    if kind is Type.DOUBLE:
        return st.floats(allow_nan=False)
    return st.booleans() if kind is Type.BOOLEAN else names


PLAIN = [*WHOLE, Type.FLOAT, Type.DOUBLE, Type.BOOLEAN, Type.STRING, Type.TEXT, Type.UUID]


@st.composite
def datasets(draw: st.DrawFn) -> DataSet:
    types = draw(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=4))
    columns = tuple(f"c{number}" for number in range(len(types)))
    row = st.tuples(*(plain(kind) for kind in types))
    return DataSet(columns, tuple(types), tuple(draw(st.lists(row, max_size=3))))


properties = st.dictionaries(
    names.filter(bool), st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), names), max_size=3
)


@st.composite
def metrics(draw: st.DrawFn, depth: int = 2) -> Metric:
    kinds = [*PLAIN, Type.BYTES, Type.DATASET, *([Type.TEMPLATE] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    if kind is Type.BYTES:
        value: sparkplug.Content = draw(st.binary(max_size=10))
    elif kind is Type.DATASET:
        value = draw(datasets())
    elif kind is Type.TEMPLATE:
        inner = draw(st.lists(metrics(depth - 1), max_size=2))
        value = Template(tuple(inner), draw(names), draw(st.booleans()), draw(names), draw(properties))
    else:
        value = draw(st.one_of(st.none(), plain(kind)))
    whole = st.one_of(st.none(), st.integers(0, 2**64 - 1))
    return Metric(
        draw(names), value, kind, draw(whole), draw(whole), draw(st.booleans()), draw(st.booleans()), draw(properties)
    )


payloads = st.builds(
    Payload,
    st.lists(metrics(), max_size=4).map(tuple),
    st.one_of(st.none(), st.integers(0, 2**63)),
    st.one_of(st.none(), st.integers(0, 255)),
    names,
    st.binary(max_size=8),
)


def reason(data: bytes) -> str:
    """Why it is refused; empty where it is read."""
    try:
        sparkplug.decode(data)
    except EventError as error:
        return error.reason
    return ""


@given(payloads)
def test_what_is_written_is_read_again(payload: Payload) -> None:
    assert sparkplug.decode(sparkplug.encode(payload)) == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert reason(data) in REASONS


@given(payloads, st.integers(0, 400), st.integers(0, 255))
def test_a_payload_with_a_damaged_byte_is_read_or_refused(payload: Payload, at: int, byte: int) -> None:
    data = bytearray(sparkplug.encode(payload))
    if data:
        data[at % len(data)] = byte
    assert reason(bytes(data)) in REASONS


def test_bytes_are_those_of_the_definition() -> None:
    payload = Payload((Metric("t", 21.5, Type.DOUBLE, alias=7),), timestamp=1000, seq=3)
    metric = b"\x0a\x01t" + b"\x10\x07" + b"\x20\x0a" + b"\x69" + struct.pack("<d", 21.5)
    assert sparkplug.encode(payload) == b"\x08\xe8\x07" + b"\x12" + bytes([len(metric)]) + metric + b"\x18\x03"


def test_a_metric_without_a_type_waits_for_its_birth() -> None:
    (metric,) = sparkplug.decode(protobuf.put(2, protobuf.put(2, 5) + protobuf.put(10, 0xFFFFFFFE))).metrics
    assert (metric.alias, metric.value) == (5, 0xFFFFFFFE)
    assert sparkplug.retyped(metric, Type.INT16).value == -2


def nested(levels: int) -> Metric:
    metric = Metric("leaf", 1, Type.INT32)
    for _ in range(levels):
        metric = Metric("inner", Template((metric,)), Type.TEMPLATE)
    return metric


def test_templates_nest_so_far_and_no_further() -> None:
    deep = sparkplug.encode(Payload((nested(sparkplug.MAX_DEPTH),)))
    assert sparkplug.decode(deep).metrics
    with pytest.raises(EventError, match="levels"):
        sparkplug.decode(sparkplug.encode(Payload((nested(sparkplug.MAX_DEPTH + 1),))))


def test_a_bomb_of_metrics_or_cells_is_refused() -> None:
    with pytest.raises(EventError, match="metrics") as error:
        sparkplug.decode(protobuf.put(2, b"") * (sparkplug.MAX_METRICS + 1))
    assert error.value.reason == "too-many-points"
    cells = protobuf.put(1, b"") * 10
    table = protobuf.put(2, "c") * 10 + protobuf.put(3, 10) * 10 + protobuf.put(4, cells) * (sparkplug.MAX_CELLS // 10)
    with pytest.raises(EventError, match="cells"):
        sparkplug.decode(protobuf.put(2, protobuf.put(17, table)))


@pytest.mark.parametrize(
    ("kind", "value"), [(Type.INT8, 128), (Type.UINT16, -1), (Type.UINT64, 2**64), (Type.FLOAT, "x"), (Type.INT32, "x")]
)
def test_a_value_that_its_type_cannot_hold_is_not_written(kind: Type, value: sparkplug.Plain) -> None:
    with pytest.raises(EventError, match="is no"):
        sparkplug.encode(Payload((Metric("m", value, kind),)))


def test_topics_are_read_as_they_are_written() -> None:
    text = sparkplug.topic("plant 1", Verb.DDATA, "edge", "press")
    assert text == "spBv1.0/plant 1/DDATA/edge/press"
    assert sparkplug.parse(text) == sparkplug.Address("plant 1", Verb.DDATA, "edge", "press")
    assert sparkplug.parse("spBv1.0/g/NBIRTH/n") == sparkplug.Address("g", Verb.NBIRTH, "n")


@pytest.mark.parametrize(
    "text", ["spBv1.0/g/DDATA/n", "spBv1.0/g/NDATA/n/d", "spBv1.0/g/XX/n", "spAv1.0/g/NDATA/n", "spBv1.0//NDATA/n", ""]
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(EventError) as error:
        sparkplug.parse(text)
    assert error.value.reason == "topic"


def test_a_part_with_a_wildcard_is_no_topic() -> None:
    with pytest.raises(EventError, match="cannot be part"):
        sparkplug.topic("g", Verb.NDATA, "n/#")


def test_infinities_and_nans_are_carried_for_whoever_judges_them() -> None:
    payload = Payload((Metric("a", math.inf, Type.DOUBLE), Metric("b", math.nan, Type.FLOAT)))
    first, second = sparkplug.decode(sparkplug.encode(payload)).metrics
    assert first.value == math.inf
    assert isinstance(second.value, float)
    assert math.isnan(second.value)
