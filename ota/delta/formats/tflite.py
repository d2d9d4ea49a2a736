"""TFLite: a FlatBuffer whose buffers hold the constants; scales and zero points stand in vectors of their own.

A constant is named by the tensor that its first user gives and the number of the input (`block1/conv;relu|3`), since
the converter numbers constants anew. Scales get the shape of the axis they belong to: (1, 1, 1, 64) for the fourth.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ota.delta.errors import LayoutError
from ota.delta.formats import MAX_TENSORS, Model, fitted, laid_out, linked
from ota.delta.tensors import Kind, Source, Tensor

MAX_NAME = 4096  # bytes
MAX_LINKS = 1 << 20  # tensors or buffers that are looked at
KINDS = {
    0: Kind.F32,
    1: Kind.F16,
    2: Kind.I32,
    3: Kind.U8,
    4: Kind.I64,
    6: Kind.U8,  # boolean
    7: Kind.I16,
    9: Kind.I8,
    10: Kind.F64,
    17: Kind.I4,
    18: Kind.BF16,
}
# Places of the fields in their tables, as the schema has them.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_GRAPH_TENSORS, _GRAPH_OPERATORS = 0, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTIZATION = 0, 1, 2, 3, 4
_OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 1, 2
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_QUANTIZATION_SCALE, _QUANTIZATION_ZERO, _QUANTIZATION_AXIS = 2, 3, 6


def read(path: Path, source: Source, size: int) -> Model | None:
    if size < 8 or source.read(4, 4) != b"TFL3":
        return None
    buffer = _Buffer(source, size)
    model = buffer.table_at(0)
    buffers = list(buffer.tables(model, _MODEL_BUFFERS))
    tensors: list[Tensor] = []
    links: dict[int, tuple[Tensor, Tensor | None]] = {}
    for graph in buffer.tables(model, _MODEL_SUBGRAPHS):
        constants = list(_constants(buffer, graph, buffers))
        links |= _of_biases(constants)
        for constant in constants:
            tensors += [tensor for tensor in (constant.tensor, constant.scale, constant.zero) if tensor is not None]
            if constant.scale is not None:
                links[constant.tensor.offset] = (constant.scale, constant.zero)
    layout = laid_out(tensors, size)
    return Model(layout, linked(layout, links))


class _Buffer:
    """A FlatBuffer, every offset of which may lie."""

    def __init__(self, source: Source, size: int) -> None:
        self._source, self._size = source, size
        self._left = MAX_LINKS * 8  # what a file may make us read

    def number(self, place: int, width: int, signed: bool = False) -> int:
        self._left -= 1
        if self._left < 0 or not 0 <= place <= self._size - width:
            raise LayoutError(f"a TFLite file that points to byte {place} of {self._size}, or to too much")
        return int.from_bytes(self._source.read(place, width), "little", signed=signed)

    def table_at(self, place: int) -> int:
        return place + self.number(place, 4)

    def field(self, table: int, number: int) -> int | None:
        """Where a field of a table is; None where the table lacks it."""
        places = table - self.number(table, 4, signed=True)
        if 4 + 2 * number + 2 > self.number(places, 2):
            return None
        at = self.number(places + 4 + 2 * number, 2)
        return table + at if at else None

    def value(self, table: int, number: int, width: int, signed: bool = False) -> int:
        place = self.field(table, number)
        return 0 if place is None else self.number(place, width, signed)

    def vector(self, table: int, number: int, width: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are; (0, 0) where there is none."""
        place = self.field(table, number)
        if place is None:
            return 0, 0
        vector = self.table_at(place)
        count = self.number(vector, 4)
        if count * width > self._size - vector - 4:
            raise LayoutError(f"a TFLite file with a vector of {count} elements at byte {vector} of {self._size}")
        return vector + 4, count

    def tables(self, table: int, number: int) -> Iterator[int]:
        begin, count = self.vector(table, number, 4)
        if count > MAX_LINKS:
            raise LayoutError(f"a TFLite file with {count} tables in one")
        for place in range(begin, begin + 4 * count, 4):
            yield self.table_at(place)

    def numbers(self, table: int, number: int) -> list[int]:
        """A vector of signed 32-bit integers."""
        begin, count = self.vector(table, number, 4)
        if count > 4096:
            raise LayoutError(f"a TFLite file with {count} integers where a few are expected")
        return [self.number(place, 4, signed=True) for place in range(begin, begin + 4 * count, 4)]

    def text(self, table: int, number: int) -> str:
        begin, count = self.vector(table, number, 1)
        return self._source.read(begin, min(count, MAX_NAME)).decode("utf-8", "replace") if count else ""


@dataclass(frozen=True)
class _Constant:
    tensor: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None


def _constants(buffer: _Buffer, graph: int, buffers: list[int]) -> Iterator[_Constant]:
    tables = list(buffer.tables(graph, _GRAPH_TENSORS))
    if len(tables) > MAX_TENSORS:
        raise LayoutError(f"a TFLite file of {len(tables)} tensors")
    users = _users(buffer, graph, len(tables))
    for number, table in enumerate(tables):
        place, length = _bytes(buffer, buffers, buffer.value(table, _TENSOR_BUFFER, 4))
        if length:
            user, at = users.get(number, (number, -1))
            name = f"{buffer.text(tables[user], _TENSOR_NAME)}|{at}"
            yield _constant(buffer, table, name, place, length)


def _of_biases(constants: list[_Constant]) -> dict[int, tuple[Tensor, Tensor | None]]:
    """The scales of a bias are those of its weights times the input's: they follow one another."""
    weights = {one.tensor.name.removesuffix("|1"): one.scale for one in constants if one.tensor.name.endswith("|1")}
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for one in constants:
        leader = weights.get(one.tensor.name.removesuffix("|2"))
        if one.scale is not None and leader is not None and leader.count == one.scale.count and leader != one.scale:
            found[one.scale.offset] = (leader, None)
    return found


def _users(buffer: _Buffer, graph: int, count: int) -> dict[int, tuple[int, int]]:
    """By number of a tensor, the tensor that its first user gives, and the number of the input."""
    found: dict[int, tuple[int, int]] = {}
    for operator in buffer.tables(graph, _GRAPH_OPERATORS):
        outputs = buffer.numbers(operator, _OPERATOR_OUTPUTS)
        for at, number in enumerate(buffer.numbers(operator, _OPERATOR_INPUTS)):
            if outputs and 0 <= outputs[0] < count:
                found.setdefault(number, (outputs[0], at))
    return found


def _bytes(buffer: _Buffer, buffers: list[int], number: int) -> tuple[int, int]:
    """Where a buffer's bytes are, within the FlatBuffer or, in files above 2 GB, behind it."""
    if not 0 <= number < len(buffers):
        raise LayoutError(f"a TFLite file that names buffer {number} of {len(buffers)}")
    place, count = buffer.vector(buffers[number], _BUFFER_DATA, 1)
    if count:
        return place, count
    return buffer.value(buffers[number], _BUFFER_OFFSET, 8), buffer.value(buffers[number], _BUFFER_SIZE, 8)


def _constant(buffer: _Buffer, table: int, name: str, place: int, length: int) -> _Constant:
    shape = tuple(buffer.numbers(table, _TENSOR_SHAPE))
    kind = KINDS.get(buffer.value(table, _TENSOR_TYPE, 1), Kind.BYTES)
    tensor = fitted(name, kind, shape, place, length)
    quantization = buffer.field(table, _TENSOR_QUANTIZATION)
    if quantization is None or tensor.kind not in (Kind.I8, Kind.U8, Kind.I4, Kind.I16, Kind.I32):
        return _Constant(tensor)
    told = buffer.table_at(quantization)
    begin, count = buffer.vector(told, _QUANTIZATION_SCALE, 4)
    axis = buffer.value(told, _QUANTIZATION_AXIS, 4)
    if not count or (count > 1 and not (axis < len(shape) and shape[axis] == count)):
        return _Constant(tensor)
    along = tuple(count if number == axis else 1 for number in range(len(shape)))
    scale = Tensor(f"{name}/scale", Kind.F32, along, begin, 4 * count)
    begin, zeros = buffer.vector(told, _QUANTIZATION_ZERO, 8)
    zero = Tensor(f"{name}/zero", Kind.I64, along, begin, 8 * count) if zeros == count else None
    return _Constant(tensor, scale, zero)
