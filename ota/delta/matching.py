"""Which tensor of the old version each one of the new version comes from.

By name and shape first. Names lie, though: a block that was put in moves the numbers of those behind it, and each then
has the name of its neighbour. So tensors of one shape and kind are compared by content, too, by samples from the same
places of both, and where another old one is clearly nearer than the one of the same name, it is taken. What a vector
holds says little, so small tensors go where the large ones of their block went.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ota.delta.codec import Hints, Pair
from ota.delta.formats import Model
from ota.delta.tensors import Kind, Source, Tensor

Factors = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]

SAMPLE = 4096  # bytes a place
PLACES = 4  # of a tensor
CLEARLY = 0.2  # by which another's likeness must exceed that of the namesake
LIKE = 0.3  # likeness from which an old tensor of another name is worth anything
TELLING = 1024  # values from which the content of a tensor says which block it is of
MOST_ALIKE = 512  # old tensors of one shape that are compared by content
_NUMPY = {
    Kind.F64: "<f8",
    Kind.F32: "<f4",
    Kind.F16: "<f2",
    Kind.I64: "<i8",
    Kind.I32: "<i4",
    Kind.I16: "<i2",
    Kind.I8: "i1",
    Kind.U8: "u1",
}

_Sample = NDArray[np.float64]
_Form = tuple[Kind, tuple[int, ...]]
_Block = tuple[str, str]  # what is ahead of its number, and the number
_NUMBER = re.compile(r"(\d+)")


def match(
    old: Model, old_source: Source, new: Model, new_source: Source, factors: Factors | None = None
) -> tuple[Pair, ...]:
    """One pair for every tensor of the new file, and for every range between them; together they cover it."""
    found = _tensors(old, old_source, new, new_source)
    pairs = [
        Pair(tensor, found[tensor.name], _hints(tensor, old, new, found, factors or {}))
        for tensor in new.layout.tensors
    ]
    pairs += [Pair(gap, before) for gap, before in _gaps(old, new, found)]
    return tuple(sorted(pairs, key=lambda pair: pair.new.offset))


def _tensors(old: Model, old_source: Source, new: Model, new_source: Source) -> dict[str, Tensor | None]:
    namesakes = {tensor.name: tensor for tensor in old.layout.tensors}
    alike: dict[_Form, list[Tensor]] = defaultdict(list)
    for tensor in old.layout.tensors:
        alike[tensor.kind, tensor.shape].append(tensor)
    wanted: dict[_Form, list[Tensor]] = defaultdict(list)
    for tensor in sorted(new.layout.tensors, key=lambda tensor: -tensor.count):
        wanted[tensor.kind, tensor.shape].append(tensor)
    found: dict[str, Tensor | None] = {}
    moved: dict[_Block, str] = {}
    for form, tensors in wanted.items():
        names = {tensor.name: _moved(tensor.name, moved) for tensor in tensors}
        found |= _of_one_form(tensors, names, alike[form], old_source, new_source)
        if tensors[0].count >= TELLING:
            for tensor in tensors:
                _learn(tensor.name, found[tensor.name], moved)
    for tensor in new.layout.tensors:
        if found[tensor.name] is None:
            namesake = namesakes.get(_moved(tensor.name, moved)) or namesakes.get(tensor.name)
            found[tensor.name] = namesake if namesake is not None and namesake.kind == tensor.kind else None
    return found


def _learn(name: str, old: Tensor | None, moved: dict[_Block, str]) -> None:
    """Where the names differ in one number, it is that of a block that moved; the largest tensor of a block decides."""
    if old is None:
        return
    words, others = _NUMBER.split(name), _NUMBER.split(old.name)
    places = [place for place, pair in enumerate(zip(words, others, strict=False)) if pair[0] != pair[1]]
    if len(words) == len(others) and len(places) == 1 and places[0] % 2:
        moved.setdefault(("".join(words[: places[0]]), words[places[0]]), others[places[0]])


def _moved(name: str, moved: Mapping[_Block, str]) -> str:
    """The name that the tensor had in the old version."""
    words = _NUMBER.split(name)
    for place in range(1, len(words), 2):
        number = moved.get(("".join(words[:place]), words[place]))
        if number is not None:
            return "".join([*words[:place], number, *words[place + 1 :]])
    return name


def _of_one_form(
    tensors: Sequence[Tensor],
    names: Mapping[str, str],
    candidates: Sequence[Tensor],
    old_source: Source,
    new_source: Source,
) -> dict[str, Tensor | None]:
    by_name = {tensor.name: tensor for tensor in candidates}
    namesakes = {tensor.name: by_name.get(names[tensor.name]) or by_name.get(tensor.name) for tensor in tensors}
    if len(candidates) > MOST_ALIKE or not candidates or (len(candidates) == 1 and all(namesakes.values())):
        return namesakes
    samples = np.stack([_sample(old_source, tensor) for tensor in candidates])
    return {
        tensor.name: _nearest(_sample(new_source, tensor), samples, candidates, namesakes[tensor.name])
        for tensor in tensors
    }


def _nearest(sample: _Sample, samples: _Sample, candidates: Sequence[Tensor], namesake: Tensor | None) -> Tensor | None:
    likeness = _likeness(sample, samples)
    best = int(np.argmax(likeness))
    chance = 3 / np.sqrt(len(sample))  # what two vectors of this length may seem alike
    if namesake is not None:
        clearly = likeness[best] > likeness[candidates.index(namesake)] + CLEARLY + chance
        return candidates[best] if clearly else namesake
    return candidates[best] if likeness[best] >= LIKE + chance else None


def _likeness(sample: _Sample, samples: _Sample) -> _Sample:
    """1 for the same, about the cosine for others, 0 where nothing is known."""
    lengths = np.linalg.norm(samples, axis=1) * np.linalg.norm(sample)
    products: _Sample = samples @ sample
    same = (samples == sample).all(axis=1)
    likeness: _Sample = np.where(
        same, 1.0, np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    )
    return likeness


def _sample(source: Source, tensor: Tensor) -> _Sample:
    """Some of its values, their mean taken away, at places that follow from its size alone."""
    size = min(SAMPLE, tensor.size)
    step = (tensor.size - size) // PLACES // 8 * 8
    starts = range(tensor.offset, tensor.offset + step * PLACES, step) if step >= size else [tensor.offset]
    values = np.concatenate([_values(source.read(start, size), tensor.kind) for start in starts])
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    values = np.clip(values, -1e30, 1e30)
    centred: _Sample = values - values.mean()
    return centred if centred.any() else values


def _values(data: bytes, kind: Kind) -> _Sample:
    if kind is Kind.BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind in (Kind.I4, Kind.U4):
        packed = np.frombuffer(data, np.uint8)
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).ravel().astype(np.float64)
        return nibbles if kind is Kind.U4 else nibbles - 16 * (nibbles > 7)
    return np.frombuffer(data, _NUMPY.get(kind, "u1")).astype(np.float64)


def _hints(tensor: Tensor, old: Model, new: Model, found: Mapping[str, Tensor | None], factors: Factors) -> Hints:
    before, here = found[tensor.name], new.scales.get(tensor.name)
    there = old.scales.get(before.name) if before is not None else None
    if here is None or there is None:
        return Hints(factors=factors.get(tensor.name))
    zeros = there.zero is not None and here.zero is not None
    old_zero, new_zero = (there.zero, here.zero) if zeros else (None, None)
    return Hints(there.scale, here.scale, old_zero, new_zero, factors.get(tensor.name))


def _gaps(old: Model, new: Model, found: Mapping[str, Tensor | None]) -> list[tuple[Tensor, Tensor | None]]:
    """Ranges between tensors go with those behind, or before, the old tensor that their own neighbour comes from."""
    by_start = {gap.offset: gap for gap in old.layout.gaps()}
    by_end = {gap.end: gap for gap in old.layout.gaps()}
    behind = {tensor.end: tensor for tensor in new.layout.tensors}
    ahead = {tensor.offset: tensor for tensor in new.layout.tensors}
    pairs = []
    for gap in new.layout.gaps():
        before = behind.get(gap.offset)
        after = ahead.get(gap.end)
        origin = found[before.name] if before is not None else None
        follower = found[after.name] if after is not None else None
        old_gap = by_start.get(origin.end if origin is not None else 0 if before is None else -1)
        if old_gap is None and follower is not None:
            old_gap = by_end.get(follower.offset)
        if old_gap is None and after is None:
            old_gap = by_end.get(old.layout.size)
        pairs.append((gap, old_gap))
    return pairs
