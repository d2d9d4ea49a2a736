"""Chunks, frames and blocks: what went in comes out, bit for bit, and rot is noticed."""

import math
import struct
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.events.schema import Block
from appliance.store import blocks, chunk, frame, seal
from appliance.store.frame import Part, Section
from appliance.store.seal import RotError

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
LAYOUTS = st.lists(NAMES, min_size=1, max_size=5, unique=True).map(tuple)
TIMES = st.integers(946_684_800_000_000_000, 4_000_000_000_000_000_000)
ANY = st.floats(allow_nan=False, allow_infinity=False)  # -0.0, subnormals and the largest among them
DECIMAL = st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 9)).map(lambda pair: pair[0] / 10.0 ** pair[1])
WIDENED = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = st.one_of(ANY, DECIMAL, WIDENED, st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2]))
ABSENT = st.just(math.nan)

Readings = list[tuple[int, dict[str, float]]]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def exact(readings: Readings) -> list[tuple[int, dict[str, bytes]]]:
    return [(at, {name: bits(value) for name, value in values.items()}) for at, values in readings]


@st.composite
def tables(draw: st.DrawFn) -> chunk.Chunk:
    points = draw(LAYOUTS)
    times = sorted(draw(st.lists(TIMES, min_size=1, max_size=30, unique=True)))
    kinds = [draw(st.sampled_from([ANY, DECIMAL, WIDENED, st.one_of(VALUES, ABSENT)])) for _ in points]
    columns = [draw(st.lists(kind, min_size=len(times), max_size=len(times))) for kind in kinds]
    return chunk.Chunk(points, np.array(times, np.int64), np.array(columns, dtype=np.float64))


@given(tables())
def test_a_chunk_comes_back_bit_for_bit(table: chunk.Chunk) -> None:
    back = chunk.decode(table.points, chunk.encode(table))
    assert back.times.tolist() == table.times.tolist()
    absent = np.isnan(table.columns)
    assert (np.isnan(back.columns) == absent).all()
    assert (back.columns.view(np.int64)[~absent] == table.columns.view(np.int64)[~absent]).all()


def test_decimals_are_much_smaller_than_doubles() -> None:
    times = np.arange(4000, dtype=np.int64) * 1_000_000_000
    walk = np.cumsum(np.random.default_rng(1).integers(-5, 6, 4000)) + 20_000
    sizes = {
        name: len(chunk.encode(chunk.Chunk(("p",), times, values.reshape(1, -1))))
        for name, values in {
            "decimal": walk / 100.0,
            "widened": (walk / 100.0).astype(np.float32).astype(np.float64),
            "double": walk * math.pi,
        }.items()
    }
    assert sizes["decimal"] < 4000 * 1.2
    assert sizes["widened"] < 4000 * 1.2
    assert sizes["double"] < 4000 * 8


def parts_of(readings: Readings) -> list[Part]:
    """One part a reading: the worst case."""
    return [
        Part(tuple(values), array("q", [at]).tobytes(), array("d", values.values()).tobytes())
        for at, values in readings
    ]


def first_wins(readings: Readings) -> Readings:
    model: dict[int, dict[str, float]] = {}
    for at, values in readings:
        model[at] = {**values, **model.get(at, {})}
    return sorted(model.items())


READINGS: st.SearchStrategy[Readings] = st.lists(
    st.tuples(
        st.one_of(TIMES, st.integers(10**18, 10**18 + 5)),  # the latter meet often
        st.one_of(
            st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1), st.dictionaries(NAMES, VALUES, min_size=1)
        ),
    ),
    min_size=1,
    max_size=40,
)


@given(READINGS)
def test_gathered_readings_are_sorted_and_the_first_value_stands(readings: Readings) -> None:
    chunks, repeats = chunk.gather(parts_of(readings))
    back = [chunk.decode(one.points, chunk.encode(one)) for one in chunks]
    assert sum(one.rows for one in back) == len(readings) - repeats
    assert all((np.diff(one.times) > 0).all() for one in back)
    rows = [
        (at, {name: value for name, value in zip(one.points, row, strict=True) if not math.isnan(value)})
        for one in back
        for at, row in one.readings()
    ]
    expected = exact(first_wins(readings))
    assert [(at, dict(sorted(row.items()))) for at, row in exact(first_wins(rows))] == [
        (at, dict(sorted(row.items()))) for at, row in expected
    ]


def test_very_different_layouts_do_not_share_a_table() -> None:
    readings: Readings = [(10**18 + row, {f"p{row}-{point}": 1.0 for point in range(50)}) for row in range(40)]
    chunks, _ = chunk.gather(parts_of(readings))
    cells = sum(one.columns.size for one in chunks)
    assert cells <= 4 * 40 * 50
    assert sum(one.rows for one in chunks) == 40


def test_a_chunk_is_bounded() -> None:
    times, many = array("q", range(10**18, 10**18 + 9000)), array("d", bytes(8 * 9000 * 100))
    chunks, _ = chunk.gather([Part(tuple(f"p{n}" for n in range(100)), times.tobytes(), many.tobytes())])
    assert all(one.rows <= chunk.MAX_ROWS and one.columns.size <= chunk.MAX_CELLS for one in chunks)
    assert sum(one.rows for one in chunks) == 9000


@settings(max_examples=50)
@given(tables(), st.data())
def test_a_single_wrong_bit_is_noticed(table: chunk.Chunk, data: st.DataObject) -> None:
    blob = bytearray(chunk.encode(table))
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RotError):
        chunk.decode(table.points, bytes(blob))
    with pytest.raises(RotError):
        chunk.decode((*table.points, "another"), chunk.encode(table))


@given(st.binary(max_size=64))
def test_rubbish_is_noticed_even_with_the_right_checksum(rubbish: bytes) -> None:
    sealed = seal.seal(rubbish, 1)
    for opener in (lambda: frame.decode(sealed), lambda: chunk.decode(("a",), seal.seal(rubbish, 1, b'["a"]'))):
        try:
            opened = opener()
        except RotError:
            continue
        assert opened is not None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.binary(max_size=40), st.binary(max_size=40))))
def test_a_frame_comes_back(sections: list[tuple[int, int, bytes, bytes]]) -> None:
    made = [Section(*section) for section in sections]
    assert frame.decode(frame.encode(made)) == made


@given(LAYOUTS, st.integers(1, 50), st.floats(1e-6, 1e6), st.data())
def test_a_block_comes_back(points: tuple[str, ...], count: int, rate: float, data: st.DataObject) -> None:
    values = {name: array("f", data.draw(st.lists(WIDENED, min_size=count, max_size=count))) for name in points}
    block = Block(10**18, rate, values)
    sealed = blocks.encode(block)
    back = blocks.decode(block.at, rate, sealed.points, sealed.data)
    assert back == block
    assert {name: samples.tobytes() for name, samples in back.values.items()} == {
        name: samples.tobytes() for name, samples in values.items()
    }
    assert 0 <= blocks.end(block) - block.at <= 86_400_000_000_000
