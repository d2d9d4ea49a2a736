"""Pairs of tensors become segments: every pair by the operation that is smallest for it. Host only.

Analysis first: tokens and contexts of all tensors go into the spool. `writing` makes segments of what was found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import zstandard
from numpy.typing import NDArray

from ota.delta.analysis import Analysis, Candidate, Hinted, run, shape_of
from ota.delta.decoding import MAX_DICTIONARY
from ota.delta.integers import load, values
from ota.delta.plans import MAX_COLUMNS, SCALES, WEIGHTS, ZEROS, Blocks
from ota.delta.predictors import Inputs
from ota.delta.segments import MAX_SEGMENT, Hints, Operation, Pair, Part
from ota.delta.tensors import Source, Tensor
from ota.delta.writing import Encoded, Piece, Spool

_LEVEL = 19
_PIECE = 2 << 20  # bytes of a RAW or GAP part
_AROUND = 1 << 20  # bytes of the old file looked at to either side of a GAP part


def encode(old: Source, new: Source, pairs: Sequence[Pair]) -> Encoded:
    """Finds the smallest operation for every pair. Memory: some copies of one tensor; disk: about the new file."""
    spool = Spool()
    try:
        return _encode(old, new, pairs, spool)
    except BaseException:
        spool.close()
        raise


def _encode(old: Source, new: Source, pairs: Sequence[Pair], spool: Spool) -> Encoded:
    copies: list[Part] = []
    pieces: list[Piece] = []
    owners = _owners(old, new, pairs)
    scales = {owner.new.offset: pair for pair in pairs for owner in [owners.get(pair.new.offset)] if owner is not None}
    for pair in _scales_first(pairs):
        if pair.new.size == 0 or pair.new.offset in owners:
            continue
        if _same(old, new, pair):
            assert pair.old is not None
            _join(copies, Part(Operation.COPY, pair.new.offset, pair.new.size, (pair.old.offset - pair.new.offset,)))
        elif pair.new.offset in scales:
            pieces += _with_scales(old, new, scales[pair.new.offset], pair, spool)
        else:
            pieces += _best(old, new, pair, spool)
    return Encoded(copies, pieces, spool)


def _owners(old: Source, new: Source, pairs: Sequence[Pair]) -> dict[int, Pair]:
    """By the offset of scales that changed, the weights in groups that alone have need of them, and changed as well."""
    users: dict[int, list[Pair]] = {}
    for pair in pairs:
        for tensor in (pair.hints.new_scale, pair.hints.new_zero):
            if tensor is not None:
                users.setdefault(tensor.offset, []).append(pair)
    found = {}
    for pair in pairs:
        owner = users.get(pair.new.offset, [])
        if len(owner) == 1 and _is_usable(pair) and not _same(old, new, pair) and not _same(old, new, owner[0]):
            hinted = _hinted(old, new, owner[0]) if _is_usable(owner[0]) else None
            grouped = hinted is not None and hinted.fields["groups"] > 1 and "zero_kind" not in hinted.fields
            if grouped and owner[0].new.kind in ZEROS[:WEIGHTS] and owner[0].new.offset not in users:
                found[pair.new.offset] = owner[0]
    return found


def _scales_first(pairs: Sequence[Pair]) -> list[Pair]:
    """Every pair behind those whose new bytes its plan may read. A hint that no such pair gives is dropped."""
    by_place = {(pair.new.offset, pair.new.size): pair for pair in pairs}
    depths: dict[tuple[int, int], int] = {}

    def depth(pair: Pair, seen: frozenset[int]) -> int:
        place = (pair.new.offset, pair.new.size)
        if place not in depths:
            needed = [by_place.get((one.offset, one.size)) for one in _needed(pair)]
            known = [one for one in needed if one is not None and one.new.offset not in seen]
            lost = len(known) < len(needed)
            found = [depth(one, seen | {one.new.offset}) for one in known]
            depths[place] = -1 if lost else 1 + max(found, default=-1)
        return max(depths[place], 0)

    for pair in pairs:
        depth(pair, frozenset([pair.new.offset]))
    return sorted(
        (pair if depths[pair.new.offset, pair.new.size] >= 0 else replace(pair, hints=Hints()) for pair in pairs),
        key=lambda pair: (depths[pair.new.offset, pair.new.size], pair.new.offset),
    )


def _needed(pair: Pair) -> list[Tensor]:
    return [one for one in (pair.hints.new_scale, pair.hints.new_zero) if one is not None]


def _same(old: Source, new: Source, pair: Pair) -> bool:
    if pair.old is None or pair.old.size != pair.new.size:
        return False
    size, step = pair.new.size, MAX_SEGMENT
    return all(
        old.read(pair.old.offset + at, min(step, size - at)) == new.read(pair.new.offset + at, min(step, size - at))
        for at in range(0, size, step)
    )


def _join(copies: list[Part], part: Part) -> None:
    last = copies[-1] if copies else None
    if last is not None and last.offset + last.size == part.offset and last.params == part.params:
        copies[-1] = replace(last, size=last.size + part.size)
    else:
        copies.append(part)


def _is_usable(pair: Pair) -> bool:
    return pair.old is not None and pair.old.size == pair.new.size and pair.old.kind == pair.new.kind


def _with_scales(old: Source, new: Source, scales: Pair, weights: Pair, spool: Spool) -> list[Piece]:
    """Weights behind their scales: where that is smaller, the scales tell the low rank, for it moves them, too."""
    with np.errstate(all="ignore"):
        analysis, candidate = _analysed(old, new, weights)
        if candidate.known.factors is not None and candidate.plan.is_scaled and scales.old and weights.old:
            rows, groups = candidate.plan.rows, candidate.plan.groups
            inputs = Inputs(old, new, scales.new.offset)
            told = Analysis(inputs, scales.new, scales.old, shape=(rows, groups)).peaked(weights.old, candidate)
            kept = analysis.keeping(candidate)
            apart = _analysed(old, new, scales)[1].bits + candidate.bits
            if rows * candidate.plan.rank <= MAX_COLUMNS and told.bits + kept.bits < apart:
                return _coded(scales, told, inputs, spool) + _coded(weights, kept, analysis.inputs, spool)
    return _best(old, new, scales, spool) + _smaller(old, new, weights, analysis, candidate, spool)


def _best(old: Source, new: Source, pair: Pair, spool: Spool) -> list[Piece]:
    """By the codec, or by zstd where it is smaller: little changed, or no numbers."""
    if shape_of(pair.new) is None:
        return list(_zipped(old, new, pair))
    with np.errstate(all="ignore"):
        analysis, candidate = _analysed(old, new, pair)
    return _smaller(old, new, pair, analysis, candidate, spool)


def _analysed(old: Source, new: Source, pair: Pair) -> tuple[Analysis, Candidate]:
    usable = _is_usable(pair)
    hinted = _hinted(old, new, pair) if usable else None
    inputs = Inputs(old, new, pair.new.offset)
    analysis = Analysis(inputs, pair.new, pair.old if usable else None, hinted, pair.hints.factors)
    return analysis, analysis.best()


def _smaller(
    old: Source, new: Source, pair: Pair, analysis: Analysis, candidate: Candidate, spool: Spool
) -> list[Piece]:
    if _zips_better(old, new, pair, candidate.bits / 8):
        zipped = list(_zipped(old, new, pair))
        if sum(len(piece.blob) + 6 for piece in zipped) * 8 < candidate.bits:
            return zipped
    return _coded(pair, candidate, analysis.inputs, spool)


def _coded(pair: Pair, candidate: Candidate, inputs: Inputs, spool: Spool) -> list[Piece]:
    walk, params = Blocks(candidate.plan), candidate.plan.params()
    with np.errstate(all="ignore"):
        numbers = [spool.add(block) for block in run(candidate.plan, candidate.known, inputs)]
    return [
        Piece(
            Part(Operation.DELTA, pair.new.offset + walk.start(at), walk.size(at), params if at == 0 else ()), [number]
        )
        for at, number in enumerate(numbers)
    ]


def _zips_better(old: Source, new: Source, pair: Pair, size: float) -> bool:
    """By a sample: zstd is slow."""
    sample = min(pair.new.size, 1 << 18)
    data = new.read(pair.new.offset, sample)
    known = old.read(pair.old.offset, min(sample, pair.old.size)) if pair.old is not None and pair.old.size else b""
    return len(_zip(data, known, 3)) < 1.3 * size * sample / pair.new.size + 64


def _zipped(old: Source, new: Source, pair: Pair) -> Iterator[Piece]:
    for at in range(0, pair.new.size, _PIECE):
        offset, size = pair.new.offset + at, min(_PIECE, pair.new.size - at)
        data = new.read(offset, size)
        alone = _zip(data, b"", _LEVEL)
        raw = Part(Operation.RAW, offset, size, (len(alone),) if len(alone) < size else ())
        best = Piece(raw, blob=alone if raw.params else data)
        if pair.old is not None and pair.old.size:
            gap = _gap(old, pair.old, pair.new, at, data)
            best = min(best, gap, key=lambda piece: len(piece.blob) + 2 * len(piece.part.params))
        yield best


def _gap(old: Source, before: Tensor, after: Tensor, at: int, data: bytes) -> Piece:
    start = min(max(0, at - _AROUND), max(0, before.size - 1))
    size = min(before.size - start, len(data) + 2 * _AROUND, MAX_DICTIONARY)
    blob = _zip(data, old.read(before.offset + start, size), _LEVEL)
    offset = after.offset + at
    return Piece(Part(Operation.GAP, offset, len(data), (before.offset + start - offset, size, len(blob))), blob=blob)


def _zip(data: bytes, dictionary: bytes, level: int) -> bytes:
    known = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    settings = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), dict_size=len(dictionary), write_checksum=False
    )
    return zstandard.ZstdCompressor(dict_data=known, compression_params=settings).compress(data)


def _hinted(old: Source, new: Source, pair: Pair) -> Hinted | None:
    """Scales and zero points where they are of a form that plans can tell."""
    hints = pair.hints
    shape = shape_of(pair.new)
    if hints.old_scale is None or hints.new_scale is None or shape is None:
        return None
    groups = _groups(hints.new_scale, shape)
    if groups is None or hints.old_scale.count != hints.new_scale.count or hints.old_scale.kind != hints.new_scale.kind:
        return None
    if hints.new_scale.kind not in SCALES:
        return None
    fields = {
        "groups": groups,
        "scale_kind": SCALES.index(hints.new_scale.kind),
        "old_scale": hints.old_scale.offset - pair.new.offset,
        "new_scale": hints.new_scale.offset - pair.new.offset,
    }
    grid = (shape[0], groups, 1) if groups else (1, 1, 1)
    found = Hinted(fields, _read(old, hints.old_scale, grid), _read(new, hints.new_scale, grid), 0.0, 0.0)
    return found if hints.old_zero is None or hints.new_zero is None else _with_zeros(old, new, pair, found, grid)


def _with_zeros(old: Source, new: Source, pair: Pair, hinted: Hinted, grid: tuple[int, int, int]) -> Hinted | None:
    before, after = pair.hints.old_zero, pair.hints.new_zero
    assert before is not None
    assert after is not None
    count = grid[0] * grid[1]
    if not before.count == after.count == count:
        return None
    if not any(old.read(before.offset, before.size)) and not any(new.read(after.offset, after.size)):
        return hinted
    if before.kind != after.kind or after.kind not in ZEROS:
        return None
    fields = hinted.fields | {
        "zero_kind": ZEROS.index(after.kind),
        "old_zero": before.offset - pair.new.offset,
        "new_zero": after.offset - pair.new.offset,
    }
    return Hinted(fields, hinted.old_scale, hinted.new_scale, _read(old, before, grid), _read(new, after, grid))


def _groups(scale: Tensor, shape: tuple[int, int]) -> int | None:
    if scale.count == 1:
        return 0
    groups, rest = divmod(scale.count, shape[0])
    return groups if not rest and groups and shape[1] % groups == 0 else None


def _read(source: Source, tensor: Tensor, grid: tuple[int, int, int]) -> NDArray[np.float64]:
    stored = load(tensor.kind, source.read(tensor.offset, tensor.size))[: tensor.count]
    return values(tensor.kind, stored).astype(np.float64).reshape(grid)
