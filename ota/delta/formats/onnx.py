"""ONNX: a protocol buffer with the constants within, or in a file beside it that it names.

Exporters number constants and nodes anew (`onnx::Conv_193`), so a constant that has such a name gets that of its first
user's output and the number of the input: `/layer1/conv1/Conv_output_0|1`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ota.delta.errors import LayoutError
from ota.delta.files import File
from ota.delta.formats import MAX_TENSORS, Model, along, fitted, laid_out, linked
from ota.delta.tensors import Kind, Source, Tensor

MAX_NAME = 4096  # bytes
MAX_FIELDS = 1 << 24  # of the whole file
MAX_DEPTH = 8  # graphs within graphs
MAX_BESIDE = 2 << 30  # bytes of a .onnx file that names others
KINDS = {
    1: Kind.F32,
    2: Kind.U8,
    3: Kind.I8,
    5: Kind.I16,
    6: Kind.I32,
    7: Kind.I64,
    9: Kind.U8,  # boolean
    10: Kind.F16,
    11: Kind.F64,
    12: Kind.I32,
    13: Kind.I64,
    16: Kind.BF16,
    21: Kind.U4,
    22: Kind.I4,
}
_COUNTER = re.compile(r"(onnx::)?[A-Za-z]*_?\d+(_quantized|_scale|_zero_point)?")
_WEIGHTS = (Kind.I8, Kind.U8, Kind.I4, Kind.U4)


@dataclass
class _Constant:
    name: str
    kind: Kind
    shape: tuple[int, ...]
    place: int
    size: int
    file: str = ""  # empty: within


@dataclass(frozen=True)
class _Node:
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class _Graph:
    constants: list[_Constant] = field(default_factory=list)
    nodes: list[_Node] = field(default_factory=list)


def read(path: Path, source: Source, size: int) -> Model | None:
    if path.suffix == ".onnx":
        return _model(_graph(source, size), "", size)
    for beside in (path.with_suffix(""), path.with_suffix(".onnx")):
        if beside.suffix == ".onnx" and beside != path and beside.is_file():
            with File(beside) as file:
                if file.size <= MAX_BESIDE:
                    return _model(_graph(file, file.size), path.name, size)
    return None


def _model(graph: _Graph, file: str, size: int) -> Model:
    users: dict[str, tuple[_Node, int]] = {}
    for node in graph.nodes:
        for number, name in enumerate(node.inputs):
            users.setdefault(name, (node, number))
    tensors = {constant.name: _tensor(constant, users) for constant in graph.constants if constant.file == file}
    layout = laid_out(tensors.values(), size)
    return Model(layout, linked(layout, _links(graph, tensors)))


def _tensor(constant: _Constant, users: dict[str, tuple[_Node, int]]) -> Tensor:
    name = constant.name
    if name in users and (not name or _COUNTER.fullmatch(name)):
        node, number = users[name]
        name = f"{node.outputs[0] if node.outputs else node.type}|{number}"
    return fitted(name, constant.kind, constant.shape, constant.place, constant.size)


def _links(graph: _Graph, tensors: dict[str, Tensor]) -> dict[int, tuple[Tensor, Tensor | None]]:
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for node in graph.nodes:
        if node.type == "DequantizeLinear" and len(node.inputs) >= 2:
            weights, scale = (tensors.get(name) for name in node.inputs[:2])
            zero = tensors.get(node.inputs[2]) if len(node.inputs) > 2 else None
            if weights is not None and weights.kind in _WEIGHTS and scale is not None and scale.kind.is_float:
                found[weights.offset] = (along(scale, weights), zero)
    return found


# The protocol buffer


class _Message:
    """Reads fields of a message at a range of a file; every length may lie."""

    def __init__(self, source: Source, size: int) -> None:
        self._source, self._size, self._left = source, size, MAX_FIELDS

    def fields(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number of the field, and its value twice for an integer, or where its bytes begin and end."""
        place = begin
        while place < end:
            self._left -= 1
            if self._left < 0:
                raise LayoutError("an ONNX file of too many fields")
            key, place = self.integer(place, end)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, place = self.integer(place, end)
                yield number, value, value
                continue
            if wire == 2:
                length, place = self.integer(place, end)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise LayoutError(f"an ONNX file with a field of kind {wire}")
            if length > end - place:
                raise LayoutError(f"an ONNX file with a field of {length} bytes at {place}, beyond {end}")
            yield number, place, place + length
            place += length

    def integer(self, place: int, end: int) -> tuple[int, int]:
        data = self._source.read(place, min(10, end - place))
        value = 0
        for number, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * number)
            if byte < 0x80:
                return value & ((1 << 64) - 1), place + number + 1
        raise LayoutError(f"an ONNX file with a broken integer at {place}")

    def text(self, begin: int, end: int) -> str:
        return self._source.read(begin, min(MAX_NAME, end - begin)).decode("utf-8", "replace")

    def integers(self, begin: int, end: int) -> Iterator[int]:
        while begin < end:
            value, begin = self.integer(begin, end)
            yield value


def _graph(source: Source, size: int) -> _Graph:
    message, found = _Message(source, size), _Graph()
    for number, begin, end in message.fields(0, size):
        if number == 7:
            _read_graph(message, begin, end, found, 0)
    return found


def _read_graph(message: _Message, begin: int, end: int, found: _Graph, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LayoutError("an ONNX file with graphs too deep within graphs")
    for number, start, stop in message.fields(begin, end):
        if number == 1:
            _read_node(message, start, stop, found, depth)
        elif number == 5:
            _keep(_constant(message, start, stop), found)


def _keep(constant: _Constant | None, found: _Graph) -> None:
    if constant is not None:
        found.constants.append(constant)
        if len(found.constants) > MAX_TENSORS:
            raise LayoutError("an ONNX file of too many tensors")


def _read_node(message: _Message, begin: int, end: int, found: _Graph, depth: int) -> None:
    inputs, outputs, kind, attributes = [], [], "", []
    for number, start, stop in message.fields(begin, end):
        if number == 1:
            inputs.append(message.text(start, stop))
        elif number == 2:
            outputs.append(message.text(start, stop))
        elif number == 4:
            kind = message.text(start, stop)
        elif number == 5:
            attributes.append((start, stop))
    found.nodes.append(_Node(kind, tuple(inputs), tuple(outputs)))
    for start, stop in attributes:
        _read_attribute(message, start, stop, found, outputs[0] if outputs else "", depth)


def _read_attribute(message: _Message, begin: int, end: int, found: _Graph, output: str, depth: int) -> None:
    """The value of a Constant node is named by what the node gives; If and Loop have graphs of their own."""
    for number, start, stop in message.fields(begin, end):
        if number == 5:
            constant = _constant(message, start, stop)
            if constant is not None:
                constant.name = constant.name or output
            _keep(constant, found)
        elif number == 6:
            _read_graph(message, start, stop, found, depth + 1)


_PLACES = {4: Kind.F32, 9: None, 10: Kind.F64}  # fields that hold elements as they are; None: those of the type


def _constant(message: _Message, begin: int, end: int) -> _Constant | None:
    """A tensor whose elements stand as they are, here or beside; None for one of variable-length integers."""
    shape: list[int] = []
    kind: Kind | None = Kind.BYTES
    found = _Constant("", Kind.BYTES, (), 0, 0)
    held = 0
    beside: dict[str, str] = {}
    for number, start, stop in message.fields(begin, end):
        if number == 1:
            shape += [start] if start == stop else message.integers(start, stop)
        elif number == 2:
            kind = KINDS.get(start, Kind.BYTES)
        elif number == 8:
            found.name = message.text(start, stop)
        elif number in _PLACES and stop > start:
            held, found.place, found.size = number, start, stop - start
        elif number == 13:
            beside.update([_entry(message, start, stop)])
        if len(shape) > 64:
            raise LayoutError("an ONNX file with a tensor of too many axes")
    found.kind, found.shape = _PLACES.get(held) or kind or Kind.BYTES, tuple(shape)
    if "location" in beside:
        _place_beside(found, beside)
    return found if found.size else None


def _entry(message: _Message, begin: int, end: int) -> tuple[str, str]:
    told = {number: message.text(start, stop) for number, start, stop in message.fields(begin, end)}
    return told.get(1, ""), told.get(2, "")


def _place_beside(found: _Constant, beside: dict[str, str]) -> None:
    found.file = beside["location"].removeprefix("./")
    try:
        found.place, found.size = int(beside.get("offset", "0")), int(beside.get("length", "0"))
    except ValueError as error:
        raise LayoutError(f"tensor {found.name[:80]} is at no place in {found.file[:80]}") from error
