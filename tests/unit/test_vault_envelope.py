"""Sealed records: they open in one place, under one key, in one encoding, or not at all."""

import dataclasses
from typing import Any

import cbor2
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.errors import SealError, VaultError
from appliance.vault import envelope
from appliance.vault.canonical import Reader
from appliance.vault.envelope import MAX_NAME_BYTES, MAX_NUMBER, MAX_RECORD_BYTES, Place
from appliance.vault.port import MAX_SECRET_BYTES
from appliance.vault.suites import SUITES, Suite

KEY = bytes(range(32))
PLACE = Place(b"v" * 16, "mqtt/plant", 3, 7)
any_suite = st.sampled_from(SUITES)
each_suite = pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
numbers = st.integers(0, MAX_NUMBER) | st.integers(0, 300)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=100)
places = st.builds(Place, st.binary(min_size=16, max_size=16), names, numbers, numbers)


@settings(max_examples=300)
@given(any_suite, st.binary(min_size=32, max_size=32), places, st.binary(max_size=500))
def test_a_record_opens_where_it_was_sealed(suite: Suite, key: bytes, place: Place, plaintext: bytes) -> None:
    record = envelope.seal(suite, key, place, plaintext)
    assert envelope.open(key, place, record) == plaintext
    parts = envelope.read(record)
    assert (parts.suite, parts.epoch) == (suite, place.epoch)
    assert cbor2.dumps(cbor2.loads(record), canonical=True) == record


@settings(max_examples=300)
@given(any_suite, places, places, st.sampled_from([field.name for field in dataclasses.fields(Place)]))
def test_any_field_of_another_place_opens_nothing(suite: Suite, place: Place, other: Place, field: str) -> None:
    moved = dataclasses.replace(place, **{field: getattr(other, field)})
    assume(moved != place)
    record = envelope.seal(suite, KEY, place, b"plaintext")
    refused(moved, record)
    fields = cbor2.loads(record)
    fields[2] = moved.epoch  # even where the record says that it belongs there
    refused(moved, cbor2.dumps(fields))


@each_suite
def test_neighbouring_places_open_nothing(suite: Suite) -> None:
    record = envelope.seal(suite, KEY, PLACE, b"plaintext")
    neighbours: list[dict[str, Any]] = [
        {"version": 2},
        {"version": 4},
        {"epoch": 6},
        {"epoch": 8},
        {"version": 7, "epoch": 3},
        {"name": "mqtt/plants"},
        {"name": "mqtt/plan"},
        {"name": "MQTT/plant"},
        {"name": "ｍqtt/plant"},  # which NFKC makes equal
        {"vault": b"v" * 15 + b"w"},
    ]
    for change in neighbours:
        refused(dataclasses.replace(PLACE, **change), record)
    assert envelope.open(KEY, PLACE, record) == b"plaintext"


@settings(max_examples=300)
@given(any_suite, any_suite, st.integers(0, 5), st.booleans())
def test_fields_of_two_records_do_not_mix(one: Suite, two: Suite, field: int, newer: bool) -> None:
    """Of one place and key: the newer value of a field in the older record, and the other way round."""
    records = [cbor2.loads(envelope.seal(suite, KEY, PLACE, b"plaintext")) for suite in (one, two)]
    mixed = list(records[newer])
    mixed[field] = records[not newer][field]
    assume(mixed not in records)
    refused(PLACE, cbor2.dumps(mixed))


@each_suite
def test_a_flipped_bit_anywhere_opens_nothing(suite: Suite) -> None:
    record = envelope.seal(suite, KEY, PLACE, b"plaintext")
    for bit in range(8 * len(record)):
        forged = bytearray(record)
        forged[bit // 8] ^= 1 << bit % 8
        refused(PLACE, bytes(forged))


def refused(place: Place, record: bytes, key: bytes = KEY) -> None:
    with pytest.raises(SealError):
        envelope.open(key, place, record)


@pytest.mark.parametrize(("field", "sizes"), [(3, (0, 31, 33)), (4, (0, 31, 33)), (5, (0, 15, MAX_SECRET_BYTES + 17))])
def test_a_string_of_another_size_is_refused_where_it_stands(field: int, sizes: tuple[int, ...]) -> None:
    fields = cbor2.loads(envelope.seal(SUITES[0], KEY, PLACE, b"plaintext"))
    for size in sizes:
        fields[field] = bytes(size)
        with pytest.raises(SealError, match=f"^{size} bytes where"):
            envelope.read(cbor2.dumps(fields))


def test_the_error_names_the_record_and_what_to_do_and_nothing_of_what_it_holds() -> None:
    record = envelope.seal(SUITES[0], KEY, PLACE, b"correct horse")
    with pytest.raises(SealError) as caught:
        envelope.open(KEY[::-1], PLACE, record)
    assert str(caught.value).startswith("'mqtt/plant', version 3, does not open: sealed under another key")
    assert "\n  -> put the secret again, or restore" in str(caught.value)
    assert not any(word in repr(caught.value) + str(caught.value) for word in ("horse", KEY.hex()))
    with pytest.raises(SealError, match="'mqtt/plant' was sealed in epoch 7, not 8"):
        envelope.open(KEY, dataclasses.replace(PLACE, epoch=8), record)


@settings(max_examples=1000)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(SealError):
        envelope.read(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.binary(max_size=70) | st.text(),
    lambda children: st.lists(children, max_size=8) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=20,
)
field = st.integers(0, 3) | st.just(bytes(32)) | anything


@settings(max_examples=1000)
@given(anything | st.lists(field, min_size=5, max_size=7))
def test_other_cbor_is_no_record(content: Any) -> None:
    """A record of the right shape is read, and opens nothing."""
    data = cbor2.dumps(content)
    try:
        envelope.read(data)
    except SealError:
        pass
    else:
        assert [type(part) for part in content] == [int, int, int, bytes, bytes, bytes]
    refused(PLACE, data)


@settings(max_examples=500)
@given(st.integers(0, 1 << 64), st.sampled_from([1, 2, 4, 8]))
def test_a_number_has_one_encoding(value: int, size: int) -> None:
    """The shortest one."""
    assume(value < 1 << 8 * size)
    data = bytes((24 + size.bit_length() - 1,)) + value.to_bytes(size, "big")
    reader = Reader(data)
    if data == cbor2.dumps(value):
        assert reader.number(value) == value
        reader.end()
        with pytest.raises(SealError, match="more than"):
            Reader(data).number(value - 1)
    else:
        with pytest.raises(SealError, match="longer than it is"):
            reader.number(value)


def test_a_reader_reads_what_stands_there_and_no_more() -> None:
    data = cbor2.dumps([1, b"two", [], 4000])
    reader = Reader(data)
    reader.array(4)
    assert reader.number(1) == 1
    assert reader.string(3, 3) == b"two"
    reader.array(0)
    with pytest.raises(SealError, match="3 bytes too many"):
        reader.end()
    assert reader.number(4000) == 4000
    reader.end()
    with pytest.raises(SealError, match="cut short"):
        reader.number(1)


def test_a_reader_counts_items_and_reads_names() -> None:
    reader = Reader(cbor2.dumps([1, "密/plant".encode()]))
    assert reader.items(2) == 2
    assert reader.number(1) == 1
    assert reader.text(1, 9) == "密/plant"
    reader.end()
    with pytest.raises(SealError, match="an array of 3, more than 2"):
        Reader(cbor2.dumps([1, 2, 3])).items(2)
    for content, why in (
        (b"\xff", "not text"),
        (b"\xed\xa0\x80", "not text"),
        (b"a\nb", "cannot be printed"),
        (b"", "0"),
    ):
        with pytest.raises(SealError, match=why):
            Reader(cbor2.dumps(content)).text(1, 9)


@pytest.mark.parametrize("length", [1 << 16, 1 << 32, (1 << 64) - 1])
def test_a_length_is_never_believed(length: int) -> None:
    """What claims to be long is refused before a byte of it is asked for."""
    for major in (0x40, 0x80):
        data = cbor2.dumps(length)
        with pytest.raises(SealError, match=r"where|cut short"):
            getattr(Reader(bytes((data[0] | major,)) + data[1:]), "string" if major == 0x40 else "array")(
                *((0, length) if major == 0x40 else (1,))
            )


@each_suite
def test_a_secret_has_a_largest_size(suite: Suite) -> None:
    record = envelope.seal(suite, KEY, PLACE, bytes(MAX_SECRET_BYTES))
    assert len(record) <= MAX_RECORD_BYTES
    assert envelope.open(KEY, PLACE, record) == bytes(MAX_SECRET_BYTES)
    with pytest.raises(VaultError, match=f"'mqtt/plant' has {MAX_SECRET_BYTES + 1} bytes, more than"):
        envelope.seal(suite, KEY, PLACE, bytes(MAX_SECRET_BYTES + 1))
    largest = envelope.seal(suite, KEY, Place(bytes(16), "n", 1, MAX_NUMBER), bytes(MAX_SECRET_BYTES))
    assert len(largest) <= MAX_RECORD_BYTES
    with pytest.raises(SealError, match=f"a record of {MAX_RECORD_BYTES + 1} bytes, more than {MAX_RECORD_BYTES}"):
        envelope.read(largest + bytes(MAX_RECORD_BYTES + 1 - len(largest)))


@pytest.mark.parametrize(
    "fields",
    [
        (b"", "n", 1, 1),
        (bytes(17), "n", 1, 1),
        (bytes(16), "", 1, 1),
        (bytes(16), "n" * (MAX_NAME_BYTES + 1), 1, 1),
        (bytes(16), "密" * (MAX_NAME_BYTES // 3 + 1), 1, 1),
        (bytes(16), "a\nb", 1, 1),
        (bytes(16), "a\0b", 1, 1),
        (bytes(16), "\ud800", 1, 1),
        (bytes(16), "n", -1, 1),
        (bytes(16), "n", 1, -1),
        (bytes(16), "n", MAX_NUMBER + 1, 1),
        (bytes(16), "n", 1, MAX_NUMBER + 1),
    ],
)
def test_a_place_that_is_none_is_refused(fields: tuple[bytes, str, int, int]) -> None:
    with pytest.raises(SealError):
        Place(*fields)
