"""The fast way to read a payload gives what the thorough way gives, or nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from appliance.errors import EventError
from appliance.events import codec, rows

NOW = 1_800_000_000_000_000_000

LETTER = st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters='"\\')
NAME = st.text(LETTER, min_size=1, max_size=8).filter(lambda name: name not in ("at", "values"))
NAMES = st.lists(NAME, min_size=1, max_size=6, unique=True)
VALUE = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
ODD = st.none() | st.booleans() | st.text(max_size=3) | st.lists(VALUE, max_size=2)


def read(points: list[str], payload: bytes) -> rows.Row | None:
    """None where it is left to the codec."""
    decode = rows.decoder(points)
    assert decode is not None
    try:
        row: rows.Row = astuple(decode(payload))
    except rows.UNREADABLE:
        return None
    return row


def thorough(payload: bytes, points: list[str]) -> rows.Row | None:
    """None where it takes more than a whole bare row."""
    try:
        reading = codec.decode_reading(payload, NOW)
    except EventError:
        return None
    if reading.at != NOW or reading.values.keys() != set(points):
        return None
    return tuple(reading.values[point] for point in points)


@given(NAMES, st.data())
def test_whole_rows_are_read_in_the_order_of_the_points(points: list[str], data: st.DataObject) -> None:
    values = {point: data.draw(VALUE) for point in data.draw(st.permutations(points))}
    payload = json.dumps(values, ensure_ascii=data.draw(st.booleans())).encode()
    assert read(points, payload) == tuple(float(values[point]) for point in points)


@given(NAMES, st.dictionaries(NAME | st.sampled_from(["at", "values"]), VALUE | ODD, max_size=6))
def test_anything_else_is_left_to_the_codec(points: list[str], values: dict[str, object]) -> None:
    payload = json.dumps(values).encode()
    assert read(points, payload) == thorough(payload, points)


@given(NAMES, st.data())
def test_a_damaged_payload_is_never_read_differently(points: list[str], data: st.DataObject) -> None:
    payload = bytearray(json.dumps({point: data.draw(VALUE) for point in points}).encode())
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    found = read(points, bytes(payload))
    assert found is None or found == thorough(bytes(payload), points)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"a": 1}',
        b'{"a": 1, "b": 1e999}',
        b'{"a": 1, "b": NaN}',
        b'{"a": 1, "b": true}',
        b"\xa2aa\x01ab\x02",
    ],
)
def test_what_is_no_whole_row_of_numbers(payload: bytes) -> None:
    assert read(["a", "b"], payload) is None


@pytest.mark.parametrize(
    "points", [[], ["at"], ["a", "values"], ['"'], ["a", "\\"], [f"p{number}" for number in range(rows.MAX_POINTS + 1)]]
)
def test_points_without_a_decoder(points: list[str]) -> None:
    assert rows.decoder(points) is None
