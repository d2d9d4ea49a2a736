"""Whatever a tensor holds, it comes back bit for bit; whatever a patch holds, it ends in DeltaError."""

import contextlib

import cbor2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ota.delta import integers, lowrank, payload, rans, writing
from ota.delta.codec import MAX_SEGMENT, Decoder, Hints, Operation, Pair, Part, Segment, encode
from ota.delta.errors import DeltaError, MismatchError, PatchError
from ota.delta.plans import Mode
from ota.delta.tensors import Kind, Layout, Memory, Tensor

CODED = (Kind.F32, Kind.F16, Kind.BF16, Kind.I32, Kind.I8, Kind.U8, Kind.I4, Kind.U4)


class Written:
    """The new file while it is being written."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, offset: int, size: int) -> bytes:
        return Memory(bytes(self.data)).read(offset, size)

    def take(self, segment: Segment, given: bytes) -> None:
        at = 0
        for part in segment.parts:
            self.data[part.offset : part.offset + part.size] = given[at : at + part.size]
            at += part.size


def pairs_of(tensors: list[Tensor], size: int, hints: dict[str, Hints] | None = None) -> list[Pair]:
    layout = Layout(size, tuple(tensors))
    return [Pair(one, one, (hints or {}).get(one.name, Hints())) for one in (*layout.tensors, *layout.gaps())]


def there_and_back(old: bytes, new: bytes, pairs: list[Pair], resuming: bool = True) -> int:
    """Bytes of tables and payloads; a fresh decoder takes over before every segment."""
    encoded = encode(Memory(old), Memory(new), pairs)
    written = Written(len(new))
    decoder = Decoder(Memory(old), written, encoded.tables)
    size = len(encoded.tables)
    for segment in encoded.segments():
        if resuming:
            state = decoder.state()
            decoder = Decoder(Memory(old), written, encoded.tables)
            decoder.resume(state)
        assert segment.size <= MAX_SEGMENT
        written.take(segment, decoder.decode(segment))
        size += len(segment.payload)
    decoder.finish()
    encoded.close()
    assert bytes(written.data) == new
    return size


def tensor(kind: Kind, shape: tuple[int, ...], offset: int = 0) -> Tensor:
    return Tensor("weights", kind, shape, offset, (int(np.prod(shape)) * kind.bits + 7) // 8)


def whole(kind: Kind, shape: tuple[int, ...], old: bytes, new: bytes) -> int:
    return there_and_back(old, new, pairs_of([tensor(kind, shape)], len(new)))


@st.composite
def any_pair(draw: st.DrawFn) -> tuple[Kind, tuple[int, ...], bytes, bytes]:
    """Bytes of any kind and shape: noise, or old ones of which a few changed."""
    kind = draw(st.sampled_from(tuple(Kind)))
    shape = tuple(draw(st.lists(st.integers(1, 24), max_size=3)))
    size = tensor(kind, shape).size
    seed = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    old = seed.integers(0, 256, size, np.uint8)
    new = old.copy() if draw(st.booleans()) else seed.integers(0, 256, size, np.uint8)
    for place in draw(st.lists(st.integers(0, size - 1), max_size=8)):
        new[place] = draw(st.integers(0, 255))
    return kind, shape, old.tobytes(), new.tobytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_pair())
@example((Kind.F32, (), b"\0\0\0\x80", b"\0\0\0\0"))
@example((Kind.F16, (3,), b"\x01\x7e\0\x7c\0\xfc", b"\xff\xff\x01\x7c\xff\x83"))
@example((Kind.I4, (3,), b"\x21\x03", b"\x12\xf3"))
@example((Kind.I32, (2,), b"\0\0\0\x80\xff\xff\xff\x7f", b"\xff\xff\xff\x7f\0\0\0\x80"))
def test_any_bytes_of_any_kind_come_back(pair: tuple[Kind, tuple[int, ...], bytes, bytes]) -> None:
    whole(*pair)


SPECIAL = {
    Kind.F16: np.array([0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0xFC00, 0x7C01, 0x7E55, 0xFFFF], "<u2"),
    Kind.BF16: np.array([0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x7F7F, 0x7F80, 0xFF80, 0x7F81, 0x7FC5, 0xFFFF], "<u2"),
    Kind.F32: np.array(
        [0, 1 << 31, 1, (1 << 31) + 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF],
        "<u4",
    ),
}


def test_a_low_rank_that_is_rounded_to_nothing_is_one() -> None:
    """Not one of numbers that are none."""
    nothing = lowrank.Factors(*(np.zeros(shape, np.int32) for shape in ((16, 1), (1, 16), (1,))), exponent=-300)
    settled = lowrank.settle(nothing, np.full((16, 16), 1e47))
    assert np.abs(settled.left).max() <= lowrank.MAX_FACTOR
    assert np.abs(settled.right).max() <= lowrank.MAX_FACTOR


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_floats_among_weights_come_back(kind: Kind) -> None:
    """Both as what is old and as what is new, in a matrix that is large enough for every predictor."""
    rng = np.random.default_rng(1)
    old, new = floats(kind, rng.normal(0, 1, 64 * 96)), floats(kind, rng.normal(0, 1, 64 * 96))
    for line in (old, new):
        places = rng.choice(len(line), 600, replace=False)
        line[places] = rng.choice(SPECIAL[kind], 600)
    whole(kind, (64, 96), old.tobytes(), new.tobytes())


def floats(kind: Kind, values: np.ndarray) -> np.ndarray:
    """As stored; rounded for bf16 by cutting, which is as good here."""
    if kind is Kind.F16:
        return values.astype("<f2").view("<u2")
    if kind is Kind.BF16:
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype("<f4").view("<u4")


def rounded(kind: Kind, numbers: np.ndarray) -> np.ndarray:
    """To what the kind can hold."""
    return integers.values(kind, floats(kind, numbers)).astype(np.float32)


def tuned(seed: int, shape: tuple[int, int] = (96, 256), rank: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the same after a change of a factor a row, of low rank, and of noise."""
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.05, shape)
    change = rng.normal(0, 0.004, (shape[0], rank)) @ rng.normal(0, 1, (rank, shape[1]))
    return old, old * rng.uniform(0.8, 1.2, (shape[0], 1)) + change + rng.normal(0, 0.0005, shape)


@pytest.mark.parametrize(("kind", "share"), [(Kind.F32, 0.8), (Kind.F16, 0.6), (Kind.BF16, 0.5)])
def test_a_tuned_matrix_of_floats_shrinks(kind: Kind, share: float) -> None:
    old, new = (floats(kind, values) for values in tuned(2))
    alone = whole(kind, (96, 256), floats(kind, tuned(9)[0]).tobytes(), new.tobytes())
    assert whole(kind, (96, 256), old.tobytes(), new.tobytes()) < share * alone


def quantised(values: np.ndarray, groups: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    grouped = values.reshape(len(values), groups, -1)
    scale = (np.abs(grouped).max(axis=2, keepdims=True) / high).astype("<f2")
    return np.rint(grouped / scale.astype("f4")).astype(np.int8).reshape(values.shape), scale


@pytest.mark.parametrize(("groups", "hinted"), [(1, True), (8, True), (1, False)])
@pytest.mark.parametrize("kind", [Kind.I8, Kind.I4])
def test_quantised_weights_follow_their_scales(kind: Kind, groups: int, hinted: bool) -> None:
    files, scale_size = [], 96 * groups * 2
    for values in tuned(3):
        weights, scale = quantised(values, groups, 127 if kind is Kind.I8 else 7)
        nibbles = weights.astype(np.uint8).reshape(-1)
        data = nibbles.tobytes() if kind is Kind.I8 else (nibbles[0::2] & 15 | nibbles[1::2] << 4).tobytes()
        files.append(data + scale.tobytes())
    weights_tensor = tensor(kind, (96, 256))
    scales = Tensor("scales", Kind.F16, (96, groups, 1), weights_tensor.size, scale_size)
    hints = {"weights": Hints(scales, scales)} if hinted else {}
    pairs = pairs_of([weights_tensor, scales], len(files[1]), hints)
    assert there_and_back(files[0], files[1], pairs) < 0.8 * len(files[1])


def packed(weights: np.ndarray) -> bytes:
    nibbles = weights.astype(np.uint8).reshape(-1)
    return (nibbles[0::2] & 15 | nibbles[1::2] << 4).tobytes()


def merged(seed: int, rows: int, columns: int, groups: int) -> tuple[tuple[bytes, bytes], list[Pair]]:
    """Four-bit weights and their scales before and after factors of low rank were merged."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.05, (rows, columns))
    left, right = rng.normal(0, 0.1, (rows, 4)).astype("f4"), rng.normal(0, 0.1, (4, columns)).astype("f4")
    files = []
    for values in (base, base + left @ right):
        grouped = values.reshape(rows, groups, -1)
        at = np.abs(grouped).argmax(axis=2)[..., None]
        scale = (np.take_along_axis(grouped, at, 2) / -8).astype("<f2")
        weights = np.clip(np.rint(grouped / scale.astype("f4")), -8, 7).astype(np.int8)
        files.append(packed(weights) + scale.tobytes())
    four = tensor(Kind.I4, (rows, columns))
    scales = Tensor("scales", Kind.F16, (rows, groups, 1), four.size, rows * groups * 2)
    pairs = pairs_of([four, scales], len(files[1]), {"weights": Hints(scales, scales)})
    return (files[0], files[1]), pairs


def modes(old: bytes, new: bytes, pairs: list[Pair]) -> set[Mode]:
    encoded = encode(Memory(old), Memory(new), pairs)
    parts = [part for segment in encoded.segments() for part in segment.parts]
    encoded.close()
    return {Mode(part.params[1]) for part in parts if part.operation is Operation.DELTA and part.params}


@pytest.mark.parametrize(("rows", "columns", "groups"), [(160, 256, 8), (20, 10_240, 160), (64, 120, 60)])
def test_scales_of_groups_follow_a_low_rank(rows: int, columns: int, groups: int) -> None:
    files, pairs = merged(12, rows, columns, groups)
    size = there_and_back(files[0], files[1], pairs)
    if (rows, columns, groups) == (160, 256, 8):
        assert Mode.PEAK in modes(*files, pairs)
        assert size < 0.75 * len(files[1])


def test_a_low_rank_is_kept_between_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that takes over after the scales finds it in the state."""
    files, pairs = merged(12, 160, 256, 8)
    monkeypatch.setattr(writing, "MAX_SEGMENT", 3000)
    assert Mode.PEAK in modes(*files, pairs)
    there_and_back(files[0], files[1], pairs)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.F32])
def test_factors_that_are_handed_over_tell_the_change(kind: Kind) -> None:
    rng = np.random.default_rng(14)
    left, right = (rounded(Kind.BF16, rng.normal(0, 0.05, shape)) for shape in ((160, 4), (4, 256)))
    base = rounded(kind, rng.normal(0, 0.05, (160, 256)))
    old, new = floats(kind, base), floats(kind, base + left @ right)
    one = tensor(kind, (160, 256))
    alone = there_and_back(old.tobytes(), new.tobytes(), [Pair(one, one)])
    told = there_and_back(old.tobytes(), new.tobytes(), [Pair(one, one, Hints(factors=(left, right)))])
    assert told < 0.8 * alone


@pytest.mark.parametrize("shape", [((9, 2), (2, 9)), ((160, 2), (2, 255)), ((160, 300), (300, 256))])
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf])
def test_factors_that_cannot_be_are_ignored(shape: tuple[tuple[int, int], tuple[int, int]], value: float) -> None:
    old, new = (floats(Kind.F16, values) for values in tuned(15, (160, 256)))
    factors = tuple(np.full(part, value, np.float32) for part in shape)
    one = tensor(Kind.F16, (160, 256))
    there_and_back(old.tobytes(), new.tobytes(), [Pair(one, one, Hints(factors=(factors[0], factors[1])))])


def test_taps_that_resemble_each_other_help() -> None:
    """The same numbers as a convolution of three by three, and as a matrix."""
    rng = np.random.default_rng(16)
    taps = rng.normal(0, 0.1, (3, 64, 1, 1)) + rng.normal(0, 0.01, (3, 64, 3, 3))
    old = rng.integers(-100, 100, (128, 576)).astype(np.int8)
    new = np.rint(old + rng.normal(0, 3, (128, 3)) @ taps.reshape(3, 576) + rng.normal(0, 0.4, old.shape))
    new = np.clip(new, -128, 127).astype(np.int8)
    flat = whole(Kind.I8, (128, 576), old.tobytes(), new.tobytes())
    assert whole(Kind.I8, (128, 64, 3, 3), old.tobytes(), new.tobytes()) < flat


def test_zero_points_follow_too() -> None:
    rng = np.random.default_rng(4)
    old, new = (rng.integers(0, 256, (64, 64), np.uint8) for _ in range(2))
    new[:, :] = np.clip(old.astype(int) + 3, 0, 255)
    zeros = [np.full(64, zero, np.uint8) for zero in (100, 103)]
    scale = np.full(64, 0.01, "<f4").tobytes()
    files = [weights.tobytes() + scale + zero.tobytes() for weights, zero in zip((old, new), zeros, strict=True)]
    scales = Tensor("scales", Kind.F32, (64, 1), 4096, 256)
    points = Tensor("zeros", Kind.U8, (64, 1), 4352, 64)
    pairs = pairs_of(
        [tensor(Kind.U8, (64, 64)), scales, points], len(files[1]), {"weights": Hints(scales, scales, points, points)}
    )
    assert there_and_back(files[0], files[1], pairs) < 400


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_scales_may_follow_scales_wherever_they_lie(order: tuple[int, int, int]) -> None:
    """Those of a bias are those of its weights times the input's: all that is left is rounding."""
    rng = np.random.default_rng(10)
    files = []
    for factor in (0.02, 0.023):
        scales = rng.uniform(0.001, 0.002, 600).astype("<f4")
        follower = (scales * np.float32(factor)).astype("<f4")
        bias = np.rint(np.sin(np.arange(600)) / follower).astype("<i4")
        files.append(b"".join([scales.tobytes(), follower.tobytes(), bias.tobytes()][place] for place in order))
    names = [("scales", Kind.F32), ("follower", Kind.F32), ("bias", Kind.I32)]
    tensors = [Tensor(names[place][0], names[place][1], (600,), 2400 * at, 2400) for at, place in enumerate(order)]
    found = {one.name: one for one in tensors}
    hints = {
        "follower": Hints(found["scales"], found["scales"]),
        "bias": Hints(found["follower"], found["follower"]),
    }
    assert there_and_back(files[0], files[1], pairs_of(tensors, 7200, hints)) < 3300


def test_hints_that_lead_nowhere_or_around_are_ignored() -> None:
    """A scale that no pair gives, and two tensors that would be each other's scale."""
    rng = np.random.default_rng(11)
    old, new = (rng.integers(0, 100, 1200, np.uint8).tobytes() for _ in range(2))
    tensors = [Tensor(name, Kind.F16, (200,), 400 * at, 400) for at, name in enumerate("abc")]
    lost = Tensor("lost", Kind.F16, (200,), 100, 400)
    pairs = pairs_of(
        tensors,
        1200,
        {
            "a": Hints(tensors[1], tensors[1]),
            "b": Hints(tensors[0], tensors[0]),
            "c": Hints(lost, lost),
        },
    )
    there_and_back(old, new, pairs)


def test_tensors_span_segments_and_blocks() -> None:
    """Larger than a segment, with rows longer than a block."""
    rng = np.random.default_rng(5)
    old = rng.normal(0, 1, (33, 70_000)).astype("<f2")
    new = (old + rng.normal(0, 0.001, old.shape)).astype("<f2")
    assert whole(Kind.F16, old.shape, old.tobytes(), new.tobytes()) < 0.7 * old.nbytes


def test_a_new_tensor_needs_no_old_one() -> None:
    new = floats(Kind.F16, tuned(6)[0]).tobytes()
    size = there_and_back(b"", new, [Pair(tensor(Kind.F16, (96, 256)))])
    assert size < 0.92 * len(new)


def test_what_moved_and_did_not_change_is_copied() -> None:
    data = np.random.default_rng(7).bytes(4000)
    old, new = data, b"head" + data
    pairs = [Pair(tensor(Kind.BYTES, (4,))), Pair(tensor(Kind.F16, (2000,), 4), tensor(Kind.F16, (2000,)))]
    assert there_and_back(old, new, pairs) < 20


# ---- hostile patches


def small_patch() -> tuple[bytes, bytes, bytes, list[Segment]]:
    old, new = (floats(Kind.F16, values).tobytes() for values in tuned(8, (32, 64)))
    old, new = old + b"text of old", new + b"text of new"
    encoded = encode(Memory(old), Memory(new), pairs_of([tensor(Kind.F16, (32, 64))], len(new)))
    segments = list(encoded.segments())
    encoded.close()
    return old, new, encoded.tables, segments


OLD, NEW, TABLES, SEGMENTS = small_patch()


def apply(tables: bytes, segments: list[Segment]) -> bytes:
    written = Written(len(NEW))
    decoder = Decoder(Memory(OLD), written, tables)
    for segment in segments:
        written.take(segment, decoder.decode(segment))
    decoder.finish()
    return bytes(written.data)


def test_the_untouched_patch_applies() -> None:
    assert apply(TABLES, SEGMENTS) == NEW


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_end_in_an_error_or_in_bytes(data: st.DataObject) -> None:
    """Digests are the container's affair: here nothing else but DeltaError may come, and nothing beyond the sizes."""
    number = data.draw(st.integers(0, len(SEGMENTS)))
    chosen = bytearray(TABLES if number == len(SEGMENTS) else SEGMENTS[number].payload)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, min(len(chosen), 400) - 1)))
        cut = data.draw(st.integers(0, 2))
        chosen[place : place + cut] = data.draw(st.binary(max_size=2))
    tables, segments = TABLES, list(SEGMENTS)
    if number == len(SEGMENTS):
        tables = bytes(chosen)
    else:
        segments[number] = Segment(SEGMENTS[number].parts, bytes(chosen))
    with contextlib.suppress(DeltaError):
        assert len(apply(tables, segments)) == len(NEW)


parameters = st.one_of(st.integers(-2, 70), st.integers(-(1 << 62), 1 << 62))


@settings(max_examples=400, deadline=None)
@given(st.lists(parameters, max_size=24), st.sampled_from(tuple(Operation)), parameters, parameters)
def test_any_parameters_end_in_an_error(params: list[int], operation: Operation, offset: int, size: int) -> None:
    """No memory or time beyond a segment's, whatever shape a plan claims."""
    part = Part(operation, offset, size, tuple(params))
    with pytest.raises(DeltaError):
        apply(TABLES, [Segment((part,), SEGMENTS[-1].payload)])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_plan_with_one_number_changed_stays_within_bounds(data: st.DataObject) -> None:
    number = next(i for i, segment in enumerate(SEGMENTS) if segment.payload)
    parts = list(SEGMENTS[number].parts)
    which = data.draw(st.sampled_from([place for place, part in enumerate(parts) if part.params]))
    params = list(parts[which].params)
    params[data.draw(st.integers(0, len(params) - 1))] = data.draw(parameters)
    parts[which] = Part(parts[which].operation, parts[which].offset, parts[which].size, tuple(params))
    with contextlib.suppress(DeltaError):
        assert len(apply(TABLES, [*SEGMENTS[:number], Segment(tuple(parts), SEGMENTS[number].payload)])) == len(NEW)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_low_rank_told_twice_stays_within_bounds(data: st.DataObject) -> None:
    """One number of a plan changed, of scales that tell a low rank or of the weights that keep it."""
    (old, new), tables, segments = PEAKS
    which, place = data.draw(st.sampled_from([(0, at) for at in range(14)] + [(1, at) for at in range(22)]))
    broken, seen = [], 0
    for segment in segments:
        parts = list(segment.parts)
        for number, part in enumerate(parts):
            if part.operation is Operation.DELTA and part.params:
                if seen == which:
                    params = list(part.params)
                    params[place % len(params)] = data.draw(parameters)
                    parts[number] = Part(part.operation, part.offset, part.size, tuple(params))
                seen += 1
        broken.append(Segment(tuple(parts), segment.payload))
    written = Written(len(new))
    decoder = Decoder(Memory(old), written, tables)
    with contextlib.suppress(DeltaError):
        for segment in broken:
            written.take(segment, decoder.decode(segment))
        decoder.finish()


def peaks() -> tuple[tuple[bytes, bytes], bytes, list[Segment]]:
    files, pairs = merged(12, 160, 256, 8)
    encoded = encode(Memory(files[0]), Memory(files[1]), pairs)
    segments = list(encoded.segments())
    encoded.close()
    return files, encoded.tables, segments


PEAKS = peaks()


def test_the_streams_must_come_out_even() -> None:
    number = next(i for i, segment in enumerate(SEGMENTS) if segment.payload)
    content = payload.read(SEGMENTS[number].payload, 1 << TABLES[0])
    assert content.states is not None
    states = content.states.copy()
    states[0] ^= 1
    again = payload.write(payload.Payload(content.words, content.raw, content.blobs, states))
    with pytest.raises(PatchError):
        apply(TABLES, [*SEGMENTS[:number], Segment(SEGMENTS[number].parts, again)])


def test_a_patch_that_ends_early_is_told() -> None:
    decoder = Decoder(Memory(OLD), Written(len(NEW)), TABLES)
    decoder.resume(cbor2.dumps([rans.start(1 << TABLES[0]).tobytes(), [], 0, [0, 1, 32, 64], 0, *[None] * 4]))
    with pytest.raises(PatchError, match="within a tensor"):
        decoder.finish()


@given(st.binary(max_size=200))
def test_a_foreign_state_is_refused(state: bytes) -> None:
    decoder = Decoder(Memory(OLD), Written(len(NEW)), TABLES)
    with pytest.raises(MismatchError):
        decoder.resume(state)
