"""Which old tensor each new one comes from: by name, by content where names moved, scales with their weights."""

import numpy as np
import pytest

from ota.delta import matching
from ota.delta.formats import Model, Scales, laid_out
from ota.delta.tensors import Kind, Memory, Tensor
from tests import deltas
from tests.deltas import Arrays

Version = tuple[Model, Memory]
KINDS = {"float32": Kind.F32, "float16": Kind.F16, "int8": Kind.I8, "uint8": Kind.U8}


def version(arrays: Arrays, gap: bytes = b"") -> Version:
    """Tensors one after the other, `gap` ahead of each."""
    data, tensors = b"", []
    for name, array in arrays.items():
        data += gap
        tensors.append(Tensor(name, KINDS[array.dtype.name], array.shape, len(data), array.nbytes))
        data += array.tobytes()
    scales = {
        tensor.name: Scales(next(other for other in tensors if other.name == f"{tensor.name}.scale"))
        for tensor in tensors
        if f"{tensor.name}.scale" in arrays
    }
    return Model(laid_out(tensors, len(data)), scales), Memory(data)


def matched(old: Version, new: Version) -> dict[str, str | None]:
    pairs = matching.match(*old, *new)
    assert [pair.new.offset for pair in pairs] == sorted(pair.new.offset for pair in pairs)
    assert sum(pair.new.size for pair in pairs) == new[0].layout.size
    return {pair.new.name: pair.old.name if pair.old else None for pair in pairs}


def block(number: int, seed: int) -> dict[str, np.ndarray]:
    return {
        f"blocks.{number}.weight": deltas.weights(seed, 48, 32),
        f"blocks.{number}.bias": deltas.weights(seed + 1, 32),
        f"blocks.{number}.gain": np.ones(32, np.float32),
    }


def test_by_name() -> None:
    old = block(0, 1) | block(1, 3)
    new = {name: deltas.tuned(array, 9) for name, array in reversed(old.items())}
    assert matched(version(old), version(new)) == {name: name for name in old}


def test_by_name_even_where_the_content_is_another() -> None:
    """Of its own form alone, a tensor that was trained from nothing keeps its namesake."""
    old = {"head.weight": deltas.weights(1, 10, 32)}
    new = {"head.weight": deltas.weights(2, 10, 32)}
    assert matched(version(old), version(new)) == {"head.weight": "head.weight"}


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_a_block_that_was_put_in_moves_the_names(kind: type) -> None:
    def cast(arrays: Arrays) -> Arrays:
        factor = 400 if kind is np.int8 else 1
        return {name: (array * factor).clip(-127, 127).astype(kind) for name, array in arrays.items()}

    old = block(0, 1) | block(1, 3) | block(2, 5)
    tuned = {name: deltas.tuned(array, 9) for name, array in old.items()}
    moved = {name.replace("blocks.2", "blocks.3").replace("blocks.1", "blocks.2"): a for name, a in tuned.items()}
    new = moved | block(1, 50)
    found = matched(version(cast(old)), version(cast(new)))
    for part in ("weight", "bias", "gain"):
        assert found[f"blocks.0.{part}"] == f"blocks.0.{part}"
        assert found[f"blocks.2.{part}"] == f"blocks.1.{part}"
        assert found[f"blocks.3.{part}"] == f"blocks.2.{part}"


def test_names_that_are_all_new_are_matched_by_content() -> None:
    old = {f"Constant_{n}": deltas.weights(n, 64, 32) for n in range(5)}
    new = {f"Constant_{900 - n}": deltas.tuned(array, 7) for n, array in enumerate(old.values())}
    assert matched(version(old), version(new)) == {f"Constant_{900 - n}": f"Constant_{n}" for n in range(5)}


def test_what_resembles_nothing_has_no_origin() -> None:
    found = matched(version({"a": deltas.weights(1, 64, 32)}), version({"b": deltas.weights(2, 64, 32)}))
    assert found == {"b": None}


def test_another_shape_keeps_its_namesake() -> None:
    found = matched(version({"head": deltas.weights(1, 10, 32)}), version({"head": deltas.weights(1, 12, 32)}))
    assert found == {"head": "head"}


def test_scales_go_with_their_weights() -> None:
    old = {"w": np.ones((8, 4), np.int8), "w.scale": deltas.weights(1, 8, 1)}
    new = {"w": np.ones((8, 4), np.int8), "w.scale": deltas.weights(2, 8, 1)}
    [pair] = [pair for pair in matching.match(*version(old), *version(new)) if pair.new.name == "w"]
    assert pair.hints.old_scale is not None
    assert pair.hints.new_scale is not None
    assert (pair.hints.old_scale.name, pair.hints.new_scale.name) == ("w.scale", "w.scale")


def test_gaps_go_with_the_gap_at_the_same_neighbour() -> None:
    old, new = block(0, 1), block(0, 1)
    pairs = matching.match(*version(old, b"12345678"), *version(dict(reversed(new.items())), b"123456789012"))
    gaps = {pair.new.offset: pair.old for pair in pairs if pair.new.kind is Kind.BYTES}
    assert len(gaps) == 3
    assert all(gap is not None and gap.size == 8 for gap in gaps.values())


def test_nothing_breaks_on_values_that_are_no_numbers() -> None:
    strange = np.array([np.nan, np.inf, -np.inf, 1e38] * 32, np.float32).reshape(16, 8)
    old = {"a": strange, "b": -strange}
    assert matched(version(old), version(old)) == {"a": "a", "b": "b"}


def test_factors_go_to_the_tensor_they_are_named_after() -> None:
    arrays = {"w": deltas.weights(1, 8, 4)}
    factors = {"w": (deltas.weights(2, 8, 2), deltas.weights(3, 2, 4))}
    [pair] = matching.match(*version(arrays), *version(arrays), factors)
    assert pair.hints.factors is factors["w"]
