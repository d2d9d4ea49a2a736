"""KServe v2 in bytes: requests to named tensors, answers to bytes. Pure but for what `Memory` reads and writes.

A body is JSON, or JSON of a told length followed by the tensors' bytes, little-endian and row by row, in the order in
which the JSON names them. RequestError says which tensor is wrong, and what would be right.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct

from appliance.errors import RequestError
from appliance.inference.port import Array, Spec

DATATYPES = {
    "BOOL": "bool",
    **{f"{word}{bits}": f"{word.lower()}{bits}" for word in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}

JSON_BYTES = 16 << 20  # of a request's JSON: as Python objects it takes ten times as much
JSON_NUMBERS = 1 << 20  # of an answer in JSON
DECODED = "decoded"  # an output that may be asked for: what the card's decoder makes of each row, as JSON

_Size = Annotated[int, Meta(ge=0, le=1 << 40)]
_Parameters = dict[str, Any]


class Given(Struct):
    """An input as it is told in JSON."""

    name: str
    datatype: str
    shape: Annotated[list[_Size], Meta(max_length=16)]
    parameters: _Parameters = {}
    data: Raw = Raw(b"")


class Wanted(Struct):
    """An output as it is asked for."""

    name: str
    parameters: _Parameters = {}


class Asked(Struct):
    inputs: Annotated[list[Given], Meta(max_length=64)]
    id: Annotated[str, Meta(max_length=1000)] = ""
    parameters: _Parameters = {}
    outputs: Annotated[list[Wanted], Meta(max_length=64)] | None = None


class _Place(Struct):
    """Parameters that say where a tensor is or goes, other than in the JSON."""

    binary_data_size: _Size | None = None
    binary_data: bool | None = None
    shared_memory_region: str = ""
    shared_memory_offset: _Size = 0
    shared_memory_byte_size: _Size = 0
    classification: Annotated[int, Meta(ge=0, le=100_000)] = 0


class Memory(Protocol):
    """Shared memory by the names that clients registered. RequestError where it does not hold so many bytes."""

    def read(self, region: str, offset: int, size: int) -> bytearray: ...

    def write(self, region: str, offset: int, data: memoryview) -> None: ...


class Body(NamedTuple):
    """An answer's body; `header` is the length of its JSON, None where it is nothing else."""

    parts: list[bytes | memoryview]
    header: int | None


# ---- requests -------------------------------------------------------------------------------------------------------

_asked = msgspec.json.Decoder(Asked)


def parse(body: bytes | bytearray, header: int | None) -> tuple[Asked, memoryview]:
    """The JSON of a request, and the bytes behind it. `header` is what Inference-Header-Content-Length says."""
    view = memoryview(body)
    size = len(view) if header is None else header
    if not 0 <= size <= len(view):
        raise RequestError(400, f"Inference-Header-Content-Length is {size}, the body has {len(view)} bytes")
    if size > JSON_BYTES:
        raise RequestError(
            413,
            f"the JSON has {size:,} bytes, more than {JSON_BYTES:,}",
            "Send tensors as binary data, or by shared memory.",
        )
    return decoded(_asked, view[:size]), view[size:]


def decoded(decoder: "msgspec.json.Decoder[Any]", data: memoryview) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the request is not as the protocol has it: {error}") from None
    except RecursionError:
        raise RequestError(400, "the request is nested too deeply") from None


def tensors(asked: Asked, rest: memoryview, specs: Sequence[Spec], memory: Memory) -> dict[str, Array]:
    """The request's inputs, of which each is what `specs` has."""
    known = {spec.name: spec for spec in specs}
    found: dict[str, Array] = {}
    for given in asked.inputs:
        spec = known.get(given.name)
        if spec is None or given.name in found:
            what = "there is no input" if spec is None else "the request has more than one input"
            raise RequestError(400, f"{what} '{given.name[:100]}'", f"The inputs are: {shown(specs)}.")
        _check(given, spec)
        place = _place(given.parameters, given.name)
        found[given.name], rest = _tensor(given, spec, place, rest, memory)
    missing = [name for name in known if name not in found]
    if missing:
        raise RequestError(400, f"input '{missing[0]}' is missing", f"The inputs are: {shown(specs)}.")
    if len(rest):
        raise RequestError(400, f"{len(rest)} bytes follow the last tensor", "Tell every tensor's binary_data_size.")
    return found


def shown(specs: Sequence[Spec]) -> str:
    return ", ".join(f"{spec.name} {text(NAMES[spec.dtype], spec.shape)}" for spec in specs)


def text(datatype: str, shape: Sequence[int]) -> str:
    return f"{datatype}[{', '.join('?' if length < 0 else str(length) for length in shape)}]"


def _check(given: Given, spec: Spec) -> None:
    fits = len(given.shape) == len(spec.shape) and all(
        wanted in (-1, length) for wanted, length in zip(spec.shape, given.shape, strict=True)
    )
    if given.datatype != NAMES[spec.dtype] or not fits:
        raise RequestError(
            400,
            f"input '{given.name}' is {text(given.datatype[:20], given.shape)}, "
            f"not {text(NAMES[spec.dtype], spec.shape)}",
        )


def _place(parameters: _Parameters, name: str) -> _Place:
    try:
        return msgspec.convert(parameters, _Place)
    except msgspec.ValidationError as error:
        raise RequestError(400, f"the parameters of '{name[:100]}' are wrong: {error}") from None


def _tensor(given: Given, spec: Spec, place: _Place, rest: memoryview, memory: Memory) -> tuple[Array, memoryview]:
    """The tensor, and what is left of the bytes behind the JSON."""
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    count = math.prod(given.shape)
    if place.shared_memory_region:
        _agree(given, place.shared_memory_byte_size, count * dtype.itemsize)
        data: memoryview | bytearray = memory.read(
            place.shared_memory_region, place.shared_memory_offset, place.shared_memory_byte_size
        )
    elif place.binary_data_size is not None:
        size = place.binary_data_size
        _agree(given, size, count * dtype.itemsize)
        if size > len(rest):
            raise RequestError(400, f"input '{given.name}' has {size} bytes, {len(rest)} are there")
        data, rest = rest[:size], rest[size:]
    else:
        return _of_json(given, spec, count), rest
    return np.frombuffer(data, dtype, count).reshape(given.shape).astype(spec.dtype, copy=False), rest


def _agree(given: Given, size: int, wanted: int) -> None:
    if size != wanted:
        raise RequestError(
            400, f"input '{given.name}' has {size} bytes, but {text(given.datatype, given.shape)} takes {wanted}"
        )


def _of_json(given: Given, spec: Spec, count: int) -> Array:
    try:
        return numbers(msgspec.json.decode(given.data) if len(bytes(given.data)) else None, spec.dtype, given.shape)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(
            400, f"the data of input '{given.name}' are not {count} values of {given.datatype}: {error}"
        ) from None


def numbers(data: Any, dtype: str, shape: Sequence[int]) -> Array:
    """Numbers in lists, nested as the shape has it or flat, as a tensor. ValueError where one does not fit."""
    if not isinstance(data, list):
        raise ValueError("a list is needed")
    found = np.asarray(data)
    wanted = np.dtype(dtype)
    if wanted == np.uint64 and found.dtype.kind == "f":
        found = _very_large(data)
    if found.size == 0 and math.prod(shape) == 0:
        return np.zeros(shape, wanted)
    if found.dtype.kind not in {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[wanted.kind]:
        raise ValueError(f"there are values that {dtype} cannot hold")
    if wanted.kind in "iu" and (found.min() < np.iinfo(wanted).min or found.max() > np.iinfo(wanted).max):
        raise ValueError(f"there are values beyond {dtype}")
    if found.size != math.prod(shape) or (found.ndim > 1 and found.shape != tuple(shape)):
        raise ValueError(f"their shape is {list(found.shape)}")
    with np.errstate(over="ignore"):
        converted = found.astype(wanted).reshape(shape)
    if wanted.kind == "f" and np.isinf(converted).any():
        raise ValueError(f"there are values beyond {dtype}")  # JSON has no infinity of its own
    return converted


def _very_large(data: list[Any]) -> Array:
    """Whole numbers of which some are beyond int64, which numpy takes for floats when others are not."""
    held = np.asarray(data, object)
    if not all(type(value) is int and 0 <= value < 1 << 64 for value in held.flat):
        raise ValueError("there are values that uint64 cannot hold")
    return held.astype(np.uint64)


# ---- answers --------------------------------------------------------------------------------------------------------


def wanted_names(asked: Asked) -> list[str] | None:
    """Of the model's own outputs that must be computed; None for all."""
    if asked.outputs is None or not asked.outputs:
        return None
    return [wanted.name for wanted in asked.outputs if wanted.name != DECODED]


def wants_decoded(asked: Asked) -> bool:
    return any(wanted.name == DECODED for wanted in asked.outputs or ())


def answer(
    asked: Asked,
    head: Mapping[str, Any],
    outputs: Mapping[str, Array],
    decoded_rows: Sequence[Mapping[str, Any]] | None,
    labels: Sequence[str],
    memory: Memory,
) -> Body:
    """The body of an answer. `head` is the JSON's beginning: model, version, parameters; `labels` name classes."""
    told: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    binary = asked.parameters.get("binary_data_output") is True
    for wanted in asked.outputs or [Wanted(name) for name in outputs]:
        place = _place(wanted.parameters, wanted.name)
        as_bytes = binary if place.binary_data is None else place.binary_data
        if wanted.name == DECODED:
            rows = [msgspec.json.encode(row) for row in decoded_rows or ()]
            told.append(_strings(wanted.name, rows, [len(rows)], as_bytes, parts))
        elif place.classification:
            rows, shape = _classes(outputs[wanted.name], place.classification, labels)
            told.append(_strings(wanted.name, rows, shape, as_bytes, parts))
        else:
            told.append(_output(wanted.name, outputs[wanted.name], place, as_bytes, parts, memory))
    named = {"id": asked.id} if asked.id else {}
    text_of_all = msgspec.json.encode({**head, **named, "outputs": told})
    return Body([text_of_all, *parts], len(text_of_all) if parts else None)


def _output(
    name: str, array: Array, place: _Place, as_bytes: bool, parts: list[bytes | memoryview], memory: Memory
) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype.name], "shape": list(array.shape)}
    if place.shared_memory_region:
        data = _bytes(array)
        if len(data) > place.shared_memory_byte_size:
            raise RequestError(
                400, f"output '{name}' has {len(data)} bytes, the place for it {place.shared_memory_byte_size}"
            )
        memory.write(place.shared_memory_region, place.shared_memory_offset, data)
        told["parameters"] = {
            "shared_memory_region": place.shared_memory_region,
            "shared_memory_offset": place.shared_memory_offset,
            "shared_memory_byte_size": len(data),
        }
    elif as_bytes:
        parts.append(_bytes(array))
        told["parameters"] = {"binary_data_size": array.nbytes}
    else:
        told["data"] = _listed(name, array)
    return told


def _bytes(array: Array) -> memoryview:
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return little.reshape(-1).view(np.uint8).data


def _listed(name: str, array: Array) -> list[Any]:
    if array.size > JSON_NUMBERS:
        raise RequestError(
            400,
            f"output '{name}' has {array.size:,} numbers: too many for JSON",
            "Ask for binary data or shared memory.",
        )
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _strings(
    name: str, rows: Sequence[bytes], shape: Sequence[int], as_bytes: bool, parts: list[bytes | memoryview]
) -> dict[str, Any]:
    """An output of text: in bytes each one behind its length in four bytes."""
    told: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": list(shape)}
    if not as_bytes:
        return {**told, "data": [row.decode() for row in rows]}
    packed = b"".join(len(row).to_bytes(4, "little") + row for row in rows)
    parts.append(packed)
    return {**told, "parameters": {"binary_data_size": len(packed)}}


def _classes(array: Array, most: int, labels: Sequence[str]) -> tuple[list[bytes], list[int]]:
    """The classification extension: of each row the best, as `score:index:label`."""
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :most]
    told = [
        f"{float(row[index]):f}:{index}{f':{labels[index]}' if index < len(labels) else ''}".encode()
        for row, places in zip(rows, best, strict=True)
        for index in places.tolist()
    ]
    return told, [*array.shape[:-1], best.shape[1]]
