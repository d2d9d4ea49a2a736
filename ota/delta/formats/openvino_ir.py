"""OpenVINO IR: `NAME.bin` holds the constants, `NAME.xml` beside it says where and for whom.

Names of constants are counters that change with every export. A tensor is named by the way from its first consumer with
a name of its own, `decoder.0/Add|MatMul.1|Multiply.0|Convert.0`: kinds of operations, and the input by which each is
entered. Several constants may share bytes, offsets need no alignment.
"""

import re
import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ota.delta.errors import LayoutError
from ota.delta.files import File
from ota.delta.formats import MAX_TENSORS, Model, fitted, laid_out, linked
from ota.delta.tensors import MAX_BYTES, Kind, Source, Tensor

MAX_XML = 256 << 20  # bytes
MAX_LAYERS = 1 << 20
MAX_PATH = 12  # operations from a constant to a consumer with a name
MAX_ELEMENTS = 1 << 24  # of the XML
KINDS = {
    "f64": Kind.F64,
    "f32": Kind.F32,
    "f16": Kind.F16,
    "bf16": Kind.BF16,
    "i64": Kind.I64,
    "u64": Kind.I64,
    "i32": Kind.I32,
    "u32": Kind.I32,
    "i16": Kind.I16,
    "u16": Kind.I16,
    "i8": Kind.I8,
    "u8": Kind.U8,
    "boolean": Kind.U8,
    "f8e4m3": Kind.U8,
    "f8e5m2": Kind.U8,
    "i4": Kind.I4,
    "u4": Kind.U4,
    "nf4": Kind.U4,  # a table's places, which rise as its values do
}
_COUNTER = re.compile(r"[A-Za-z]+_\d+(/.*)?")  # such as Constant_8 and Multiply_16650/fq_weights_1
_HALVED = "_compressed"  # what a constant's name ends in once it is saved in half precision
_WEIGHTS = (Kind.I8, Kind.U8, Kind.I4, Kind.U4)


@dataclass
class _Layer:
    name: str
    type: str
    data: dict[str, str] = field(default_factory=dict)
    users: list[tuple[str, int]] = field(default_factory=list)  # layer, number of the input
    inputs: dict[int, str] = field(default_factory=dict)


_Graph = dict[str, _Layer]


def read(path: Path, source: Source, size: int) -> Model | None:
    beside = path.with_suffix(".xml")
    if path.suffix != ".bin" or not beside.is_file():
        return None
    with File(beside) as file:
        if file.size > MAX_XML:
            raise LayoutError(f"{beside} has {file.size} bytes; {MAX_XML} are read")
        graph = _Parser().parse(file.parts(0, file.size))
    constants = dict(_constants(graph, size))
    layout = laid_out(constants.values(), size)
    return Model(layout, linked(layout, _links(graph, constants)))


class _Parser:
    """Reads the XML as it comes. Entities and document types are refused, what is not wanted is not kept."""

    def __init__(self) -> None:
        self._graph: _Graph = {}
        self._layer: _Layer | None = None
        self._depth = self._elements = 0
        self._ports: dict[str, dict[str, int]] = {}
        self._inputs: dict[str, int] | None = None
        self._parser = xml.parsers.expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse

    def parse(self, parts: Iterator[bytes]) -> _Graph:
        try:
            for part in parts:
                self._parser.Parse(part)
            self._parser.Parse(b"", True)
        except (xml.parsers.expat.ExpatError, KeyError, ValueError) as error:
            raise LayoutError(f"XML that is no OpenVINO IR: {error}") from error
        return self._graph

    def _refuse(self, *told: object) -> None:
        raise LayoutError("XML with a document type or entities of its own")

    def _start(self, tag: str, told: dict[str, str]) -> None:
        self._depth, self._elements = self._depth + 1, self._elements + 1
        if self._depth > 64 or self._elements > MAX_ELEMENTS or len(self._graph) > MAX_LAYERS:
            raise LayoutError("XML that is too deep or too long")
        # <net><layers><layer><data> and <input><port>; nets within nets are someone else's
        if self._depth == 3 and tag == "layer":
            self._layer = self._graph[told["id"]] = _Layer(told["name"], told["type"])
            self._inputs = self._ports[told["id"]] = {}
        elif self._depth == 4 and self._layer is not None and tag == "data":
            self._layer.data = told
        elif self._depth == 4:
            self._counting = tag == "input"
        elif self._depth == 5 and tag == "port" and self._counting and self._inputs is not None:
            self._inputs[told["id"]] = len(self._inputs)
        elif self._depth == 3 and tag == "edge":
            self._edge(told)

    def _edge(self, told: dict[str, str]) -> None:
        source, user = told["from-layer"], told["to-layer"]
        number = self._ports[user].get(told["to-port"], 0)
        self._graph[source].users.append((user, number))
        self._graph[user].inputs[number] = source

    def _end(self, tag: str) -> None:
        self._depth -= 1


def _constants(graph: _Graph, size: int) -> Iterator[tuple[str, Tensor]]:
    constants = [(key, layer) for key, layer in graph.items() if layer.type == "Const" and "offset" in layer.data]
    if len(constants) > MAX_TENSORS:
        raise LayoutError(f"a model of {len(constants)} constants")
    for key, layer in constants:
        yield key, _tensor(_name(graph, key), layer.data, size)


def _tensor(name: str, data: dict[str, str], size: int) -> Tensor:
    try:
        offset, length = int(data["offset"]), int(data["size"])
        shape = tuple(int(number) for number in data["shape"].split(",") if number.strip())
    except (KeyError, ValueError) as error:
        raise LayoutError(f"constant {name[:80]} is not described as it should be") from error
    if not 0 <= offset <= MAX_BYTES or not 0 <= length <= size - offset:
        raise LayoutError(f"constant {name[:80]}: {length} bytes at {offset} of {size}")
    kind = KINDS.get(data.get("element_type", ""), Kind.BYTES)
    return fitted(name, kind, shape, offset, length)


def _name(graph: _Graph, key: str) -> str:
    """The nearest user with a name of its own, and the way from it back to the constant."""
    own = graph[key].name.removesuffix(_HALVED)
    if not _COUNTER.fullmatch(own):
        return own
    waiting, seen = [(key, "")], {key}
    for _ in range(MAX_PATH):
        coming = []
        for place, way in waiting:
            for user, number in graph[place].users:
                step = f"|{graph[user].type}.{number}{way}"
                if not _COUNTER.fullmatch(graph[user].name):
                    return graph[user].name + step
                if user not in seen:
                    seen.add(user)
                    coming.append((user, step))
        waiting = coming[:64]
    return (waiting[0][1] if waiting else "") or "constant"


def _links(graph: _Graph, constants: dict[str, Tensor]) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Weights go through Convert, perhaps Subtract of a zero point, and Multiply by a scale."""
    found = {}
    for key, tensor in constants.items():
        if tensor.kind in _WEIGHTS:
            place, zero = _only_user(graph, key, "Convert"), None
            subtract = _only_user(graph, place, "Subtract")
            if subtract is not None and graph[subtract].inputs.get(0) != place:
                continue  # it is a zero point itself
            if subtract is not None:
                zero, place = _beside(graph, subtract, place, constants), subtract
            multiply = _only_user(graph, place, "Multiply")
            scale = _beside(graph, multiply, place, constants)
            if scale is not None and scale.kind.is_float:
                found[tensor.offset] = (scale, zero)
    return found


def _only_user(graph: _Graph, key: str | None, kind: str) -> str | None:
    users = {user for user, _ in graph[key].users} if key is not None else set()
    user = users.pop() if len(users) == 1 else None
    return user if user is not None and graph[user].type == kind else None


def _beside(graph: _Graph, user: str | None, key: str | None, constants: dict[str, Tensor]) -> Tensor | None:
    """The constant, converted or not, at the other input of `user`."""
    if user is None:
        return None
    for other in graph[user].inputs.values():
        if other != key:
            if graph[other].type == "Convert" and 0 in graph[other].inputs:
                other = graph[other].inputs[0]  # noqa: PLW2901  one step back
            return constants.get(other)
    return None
