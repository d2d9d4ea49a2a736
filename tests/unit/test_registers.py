"""Modbus registers: the fewest requests, any order of words and bytes, and what may be written."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.connectors import _registers
from appliance.connectors._registers import Block, Point
from appliance.errors import ConfigError, ConnectorError, EventError

RANGES = {
    "uint16": (0, 2**16 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint32": (0, 2**32 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint64": (0, 2**53),
    "int64": (-(2**53), 2**53),
}
orders = st.sampled_from(["big", "little"])


@st.composite
def points(draw: st.DrawFn) -> Point:
    table: Any = draw(st.sampled_from(["holding", "input", "coil", "discrete"]))
    return Point(
        str(draw(st.integers(0, 10**9))),
        draw(st.integers(0, 400)),
        table,
        draw(st.sampled_from(["uint16", "int32", "float64"])),
    )


@given(st.lists(points(), max_size=40), st.integers(0, 20), st.integers(4, 125))
def test_blocks_hold_every_point_once_and_break_no_bound(found: list[Point], gap: int, most: int) -> None:
    blocks = _registers.plan(found, gap, most)
    assert sorted(point.name for block in blocks for point in block.points) == sorted(point.name for point in found)
    for block in blocks:
        assert block.size <= (most if block.table in ("input", "holding") else min(16 * most, 2000))
        for point in block.points:
            assert block.address <= point.address
            assert point.address + point.width <= block.address + block.size
        used = {point.address + offset for point in block.points for offset in range(point.width)}
        unused = 0
        for address in range(block.address, block.address + block.size):
            unused = 0 if address in used else unused + 1
            assert unused <= gap


def test_neighbours_are_one_request_and_strangers_are_not() -> None:
    near = [Point(f"p{number}", number * 2, "input", "float32") for number in range(20)]
    assert _registers.plan(near, 0) == [Block("input", 0, 40, tuple(near))]
    far = [*near, Point("far", 49, "input"), Point("farther", 58, "input"), Point("coil", 5, "coil")]
    assert [(block.table, block.address, block.size) for block in _registers.plan(far, 8)] == [
        ("coil", 5, 1),
        ("input", 0, 40),
        ("input", 49, 10),
    ]
    assert [block.size for block in _registers.plan(near, 0, 10)] == [10, 10, 10, 10]


def test_a_block_that_is_refused_is_asked_for_in_parts() -> None:
    holes = [Point("a", 0), Point("b", 4), Point("c", 5)]
    (block,) = _registers.plan(holes, 8)
    parts = _registers.split(block)
    assert [(one.address, one.size) for one in parts] == [(0, 1), (4, 2)]
    assert [(one.address, one.size) for one in _registers.split(parts[1])] == [(4, 1), (5, 1)]


@pytest.mark.parametrize(
    ("words", "swap", "registers"),
    [
        ("big", "big", [0x4366, 0x199A]),
        ("little", "big", [0x199A, 0x4366]),
        ("big", "little", [0x6643, 0x9A19]),
        ("little", "little", [0x9A19, 0x6643]),
    ],
)
def test_the_four_orders_of_a_float(words: Any, swap: Any, registers: list[int]) -> None:
    point = Point("v", 0, type="float32", words=words, bytes=swap, writable=True)
    assert _registers.decode(point, registers) == pytest.approx(230.1, rel=1e-6)
    assert _registers.encode(point, 230.1) == registers


@given(st.sampled_from(sorted(RANGES)), orders, orders, st.data())
def test_what_is_written_is_read(kind: Any, words: Any, swap: Any, data: st.DataObject) -> None:
    value = data.draw(st.integers(*RANGES[kind]))
    point = Point("p", 0, type=kind, words=words, bytes=swap, writable=True)
    registers = _registers.encode(point, value)
    assert len(registers) == point.width
    assert all(0 <= register <= 0xFFFF for register in registers)
    assert _registers.decode(point, registers) == value


def test_scale_offset_and_bits() -> None:
    point = Point("t", 0, type="int16", scale=0.1, offset=-40, writable=True)
    assert _registers.decode(point, [1000]) == pytest.approx(60.0)
    assert _registers.encode(point, 60.0) == [1000]
    assert [_registers.decode(Point("b", 0, bit=bit), [0b1010]) for bit in range(4)] == [0, 1, 0, 1]
    assert _registers.decode(Point("c", 0, "coil"), [True]) == 1.0


def test_a_meter_that_has_no_value_says_nan() -> None:
    with pytest.raises(EventError) as error:
        _registers.decode(Point("v", 0, type="float32"), [0x7FC0, 0])
    assert error.value.reason == "not-finite"


@pytest.mark.parametrize(
    ("changes", "value", "wrong"),
    [
        ({"writable": False}, 1, "read only"),
        ({"min": 0, "max": 10}, 11, "may not be set"),
        ({"min": 0}, -1, "may not be set"),
        ({}, math.nan, "may not be set"),
        ({}, 70_000, "cannot hold"),
    ],
)
def test_what_may_not_be_written(changes: dict[str, Any], value: float, wrong: str) -> None:
    point = Point("p", 0, **({"writable": True} | changes))
    with pytest.raises(ConnectorError, match=wrong) as error:
        _registers.encode(point, value)
    assert error.value.remedy


@pytest.mark.parametrize(
    "point",
    [
        Point("p", 65535, type="uint32"),
        Point("p", 0, "input", writable=True),
        Point("p", 0, bit=1, type="uint32"),
        Point("p", 0, bit=1, writable=True),
        Point("p", 0, scale=0, writable=True),
    ],
)
def test_points_that_cannot_be(point: Point) -> None:
    with pytest.raises(ConfigError):
        _registers.check(point)
