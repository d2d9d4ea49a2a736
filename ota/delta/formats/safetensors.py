"""safetensors: u64 length of the header, a JSON header, the tensors. Names are those of the training framework."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ota.delta.errors import LayoutError
from ota.delta.formats import MAX_TENSORS, Model, along, fitted, laid_out, linked
from ota.delta.tensors import Kind, Source, Tensor

MAX_HEADER = 32 << 20  # bytes
KINDS = {
    "F64": Kind.F64,
    "F32": Kind.F32,
    "F16": Kind.F16,
    "BF16": Kind.BF16,
    "I64": Kind.I64,
    "I32": Kind.I32,
    "I16": Kind.I16,
    "I8": Kind.I8,
    "U8": Kind.U8,
    "F8_E4M3": Kind.U8,  # their order is not that of their bits below zero, but near enough
    "F8_E5M2": Kind.U8,
    "BOOL": Kind.U8,
}
SCALES = ("_scale", ".scale", "_scales", ".scales")
ZEROS = ("_zero_point", ".zero_point", "_zeros", ".zeros")


def read(path: Path, source: Source, size: int) -> Model | None:
    if path.suffix != ".safetensors" or size < 10:
        return None
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise LayoutError(f"{path}: a header of {length} bytes")
    try:
        header = json.loads(source.read(8, length))
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: the header is no JSON: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise LayoutError(f"{path}: the header names no tensors")
    tensors = {
        name: _tensor(name, told, 8 + length) for name, told in header.items() if name != "__metadata__" and name
    }
    layout = laid_out(tensors.values(), size)
    return Model(layout, linked(layout, _links(tensors)))


def _tensor(name: str, told: Any, begin: int) -> Tensor:
    try:
        shape, (start, stop) = tuple(told["shape"]), told["data_offsets"]
        kind = KINDS.get(told["dtype"], Kind.BYTES)
    except (TypeError, KeyError, ValueError) as error:
        raise LayoutError(f"tensor {name[:80]} is not described as it should be") from error
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)) or start > stop:
        raise LayoutError(f"tensor {name[:80]} is at {start} to {stop}")
    return fitted(name, kind, shape, begin + start, stop - start)


def _links(tensors: Mapping[str, Tensor]) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Scales are told by name: `a.weight` is scaled by `a.weight_scale`, `a.weight.scale`, `a.scales`."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.kind in (Kind.I8, Kind.U8):
            stems = (name, name.rpartition(".")[0])
            scale = _named(tensors, stems, SCALES)
            if scale is not None and scale.kind.is_float:
                found[tensor.offset] = (along(scale, tensor), _named(tensors, stems, ZEROS))
    return found


def _named(tensors: Mapping[str, Tensor], stems: tuple[str, ...], endings: tuple[str, ...]) -> Tensor | None:
    return next((tensors[stem + ending] for stem in stems for ending in endings if stem + ending in tensors), None)
