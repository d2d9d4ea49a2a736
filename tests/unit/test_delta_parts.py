"""The parts of the delta codec one by one: integers, tokens, tables, streams, low rank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.delta import lowrank, rans, streams, tables, tokens
from ota.delta.adaptive import Reader, Writer
from ota.delta.errors import LayoutError, PatchError
from ota.delta.integers import FORMS, cells, load, ordered, store, values
from ota.delta.tensors import Kind, Layout, Memory, Tensor

FLOATS = [Kind.F16, Kind.BF16, Kind.F32]


@pytest.mark.parametrize("kind", FORMS)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=20, deadline=None)
def test_ordered_integers_are_the_bytes(kind: Kind, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(256)
    assert store(kind, ordered(kind, load(kind, data))) == data


@pytest.mark.parametrize("kind", FLOATS)
def test_ordered_integers_rise_with_the_number(kind: Kind) -> None:
    form = FORMS[kind]
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 1 << form.width, 20_000, np.uint64).astype(form.store)
    with np.errstate(invalid="ignore"):
        numbers = values(kind, stored)
    finite = np.isfinite(numbers)
    order = np.argsort(ordered(kind, stored[finite]), kind="stable")
    assert (np.diff(numbers[finite][order]) >= 0).all()


@pytest.mark.parametrize("kind", FLOATS)
def test_a_number_of_the_kind_is_the_middle_of_its_cell(kind: Kind) -> None:
    stored = np.random.default_rng(2).integers(0, 1 << FORMS[kind].width, 20_000, np.uint64).astype(FORMS[kind].store)
    with np.errstate(all="ignore"):
        numbers = values(kind, stored)
        found = cells(kind, numbers)
    finite = np.isfinite(numbers)
    assert (found.ordered == ordered(kind, stored))[finite].all()
    assert (found.fraction[finite] == 0).all()


def test_half_floats_are_rounded_as_numpy_rounds() -> None:
    rng = np.random.default_rng(3)
    numbers = (rng.normal(0, 1, 50_000) * np.exp2(rng.integers(-30, 14, 50_000))).astype(np.float32)
    found = cells(Kind.F16, numbers)
    assert (found.ordered == ordered(Kind.F16, numbers.astype("<f2").view("<u2"))).all()


@given(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=200))
def test_tokens_and_raw_bits_are_the_residual(numbers: list[int]) -> None:
    residuals = np.array(numbers, np.int32)
    symbols, raw = tokens.split(residuals)
    assert symbols.size == 0 or symbols.max() < tokens.TOKENS
    bits = tokens.Bits(tokens.pack(raw, tokens.WIDTHS.take(symbols)))
    assert (tokens.join(symbols, bits) == residuals).all()


def test_raw_bits_that_run_out_are_told() -> None:
    with pytest.raises(PatchError):
        tokens.Bits(b"\xff").take(np.array([4, 5], np.uint8))


@pytest.mark.parametrize("kind", FLOATS)
def test_fresh_floats_come_back(kind: Kind) -> None:
    form = FORMS[kind]
    stored = np.random.default_rng(4).integers(0, 1 << form.width, 20_000, np.uint64).astype(form.store)
    symbols, raw, widths = streams.fresh_split(kind, stored)
    assert (widths == streams.fresh_widths(kind, symbols)).all()
    assert (streams.fresh_join(kind, symbols, raw) == ordered(kind, stored)).all()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-(1 << 36), 1 << 36)), max_size=200))
def test_the_adaptive_coder_gives_back_what_it_took(numbers: list[tuple[int, int]]) -> None:
    writer = Writer()
    for context, number in numbers:
        writer.signed(context, number)
    reader = Reader(writer.finish())
    assert [(context, reader.signed(context)) for context, _ in numbers] == numbers


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_tables_or_an_error(data: bytes) -> None:
    try:
        book = tables.parse(data)
    except PatchError:
        return
    assert len(book.tables) <= tables.MAX_TABLES
    assert book.chosen.max() < max(1, len(book.tables))


@st.composite
def counted(draw: st.DrawFn) -> np.ndarray:
    counts = np.zeros((tokens.FAMILIES * tokens.CONTEXTS, rans.SYMBOLS), np.int64)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    for place in draw(st.lists(st.integers(0, len(counts) - 1), max_size=200)):
        counts[place, : rng.integers(1, 257)] = rng.geometric(rng.uniform(0.0001, 1))
        counts[place, 0] += 1
    return counts


@given(counted())
@settings(max_examples=25, deadline=None)
def test_every_symbol_that_occurs_can_be_coded(counts: np.ndarray) -> None:
    data, book = tables.build(counts)
    assert len(book.tables) <= tables.MAX_TABLES
    contexts, symbols = np.nonzero(counts)
    if len(contexts):
        assert (book.tables.frequencies[book.chosen.reshape(-1)[contexts], symbols] > 0).all()
    assert (tables.parse(data).tables.frequencies == book.tables.frequencies).all()


def some_tables(rng: np.random.Generator, count: int) -> rans.Tables:
    rows = []
    for _ in range(count):
        row = np.bincount(rng.geometric(rng.uniform(0.01, 0.999), rans.TOTAL).clip(1, 256) - 1, minlength=256)
        rows.append(row)
    return rans.Tables(np.array(rows, np.uint32))


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 3000), max_size=5), st.sampled_from([8, 64, 1024]))
@settings(max_examples=40, deadline=None)
def test_streams_give_back_every_symbol(seed: int, lengths: list[int], lanes: int) -> None:
    rng = np.random.default_rng(seed)
    book = some_tables(rng, 5)
    calls = []
    for length in lengths:
        chosen = rng.integers(0, 5, length, np.uint8)
        calls.append((chosen, book.slots[chosen.astype(int) * rans.TOTAL + rng.integers(0, rans.TOTAL, length)]))
    states = rans.start(lanes)
    words = [rans.encode_call(book, states, *call) for call in reversed(calls)][::-1]
    written = np.concatenate(words) if words else np.zeros(0, np.uint16)
    position = 0
    for chosen, symbols in calls:
        found, position = rans.decode(book, states, written, position, chosen)
        assert (found == symbols).all()
    assert position == len(written)
    assert (states == rans.LOW).all()


def test_words_that_run_out_are_told() -> None:
    book = some_tables(np.random.default_rng(5), 1)
    with pytest.raises(PatchError):
        rans.decode(book, rans.start(8), np.zeros(2, np.uint16), 0, np.zeros(1000, np.uint8))


def test_the_product_of_factors_is_exact() -> None:
    """At the bounds, in any order of summation."""
    rng = np.random.default_rng(6)
    left = rng.choice([-lowrank.MAX_FACTOR, lowrank.MAX_FACTOR], (8, lowrank.MAX_RANK)).astype(np.int32)
    right = rng.choice([-lowrank.MAX_FACTOR, lowrank.MAX_FACTOR], (lowrank.MAX_RANK, 40)).astype(np.int32)
    shifts = rng.integers(0, lowrank.MAX_SHIFT + 1, lowrank.MAX_RANK).astype(np.int32)
    found = lowrank.product(left, lowrank.shifted(right, shifts))
    exact = (left.astype(object) @ (right.astype(object) * (1 << shifts.astype(object))[:, None])).astype(np.int64)
    assert (found.astype(np.int64) == exact).all()


def test_components_that_stand_out_are_found() -> None:
    rng = np.random.default_rng(7)
    change = rng.normal(0, 1, (80, 3)) @ rng.normal(0, 1, (3, 200)) + rng.normal(0, 0.1, (80, 200))
    found = lowrank.find(change, 20)
    assert found.rank == 3
    factors = lowrank.quantise(found.left, found.right, 0.1)
    again = lowrank.product(factors.left, lowrank.shifted(factors.right, factors.shifts)) * 2.0**factors.exponent
    assert np.std(change - again) < 0.12


def test_a_layout_knows_its_gaps_and_refuses_overlaps() -> None:
    first, second = Tensor("a", Kind.F32, (2,), 4, 8), Tensor("b", Kind.I4, (3,), 12, 2)
    layout = Layout(20, (first, second))
    assert [(gap.offset, gap.size) for gap in layout.gaps()] == [(0, 4), (14, 6)]
    with pytest.raises(LayoutError):
        Layout(20, (second, first))
    with pytest.raises(LayoutError):
        Layout(13, (first, second))
    with pytest.raises(LayoutError):
        Tensor("c", Kind.F32, (2,), 0, 7)
    with pytest.raises(LayoutError):
        Memory(b"abc").read(2, 2)
