"""What a model file holds, whoever wrote it: one file a format, tried in turn; a file that none knows is bytes.

A format has `read(path, source, size) -> Model | None`: None where the file is of another format, LayoutError where it
is of this one and broken. The names of tensors come from who uses them in the graph, so that they stay as they are from
one export to the next. Whoever reads patches needs none of this.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ota.delta.errors import LayoutError
from ota.delta.files import File
from ota.delta.tensors import MAX_BYTES, MAX_DIMENSIONS, Kind, Layout, Tensor

FORMATS = ("safetensors", "tflite", "onnx", "openvino_ir")
MAX_TENSORS = 1 << 17


@dataclass(frozen=True)
class Scales:
    """By which numbers quantised weights are multiplied, and from which they count."""

    scale: Tensor
    zero: Tensor | None = None


@dataclass(frozen=True)
class Model:
    """`scales` by the name of the weights."""

    layout: Layout
    scales: Mapping[str, Scales] = field(default_factory=dict)


def read(path: Path) -> Model:
    """The tensors of a file; none where its format is unknown or it cannot be understood."""
    with File(path) as source:
        for name in FORMATS:
            model: Model | None = None
            try:
                model = importlib.import_module(f"{__name__}.{name}").read(path, source, source.size)
            except LayoutError:
                continue  # a model that breaks its format is still a file
            if model is not None:
                return model
        return Model(Layout(source.size))


def fitted(name: str, kind: Kind, shape: tuple[int, ...], offset: int, size: int) -> Tensor:
    """A tensor as it is told, or plain bytes where its shape does not fit its size."""
    bits = kind.bits
    for length in shape:
        bits = min(bits * max(0, length), 8 * MAX_BYTES + 8)
    if kind is Kind.BYTES or len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or (bits + 7) // 8 != size:
        kind, shape = Kind.BYTES, (size,)
    return Tensor(name, kind, shape, offset, size)


def along(scale: Tensor, weights: Tensor) -> Tensor:
    """With as many axes as the weights, where it has one value for each of the first."""
    if (scale.count,) == weights.shape[:1] and len(scale.shape) < len(weights.shape):
        shape = (scale.count, *(1 for _ in weights.shape[1:]))
        return Tensor(scale.name, scale.kind, shape, scale.offset, scale.size)
    return scale


def laid_out(tensors: Iterable[Tensor], size: int) -> Layout:
    """Rising, the first of those that overlap; names that come twice get a number."""
    found: list[Tensor] = []
    names: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, -tensor.size)):
        if tensor.offset < end or tensor.end > size or not tensor.size:
            continue
        names[tensor.name] = names.get(tensor.name, 0) + 1
        found.append(_named(tensor, tensor.name if names[tensor.name] == 1 else f"{tensor.name}#{names[tensor.name]}"))
        end = tensor.end
    return Layout(size, tuple(found))


def _named(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name, tensor.kind, tensor.shape, tensor.offset, tensor.size)


def linked(layout: Layout, links: Mapping[int, tuple[Tensor, Tensor | None]]) -> dict[str, Scales]:
    """Scales by the name of their weights, from links by the weights' offset; those that the layout lacks are left out.

    A scale's shape is its own (it says which axis it belongs to), even where its bytes were laid out in another.
    """
    places = {tensor.offset: tensor for tensor in layout.tensors}
    found = {}
    for offset, (scale, zero) in links.items():
        if offset in places and _there(places, scale):
            found[places[offset].name] = Scales(scale, zero if zero is not None and _there(places, zero) else None)
    return found


def _there(places: Mapping[int, Tensor], tensor: Tensor) -> bool:
    held = places.get(tensor.offset)
    return held is not None and held.size == tensor.size and held.kind == tensor.kind
