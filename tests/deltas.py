"""Versions of small model files for tests of the delta codec, written byte by byte, and broken on purpose."""

import json
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
SAFETENSORS = {"f4": "F32", "f2": "F16", "i1": "I8", "u1": "U8", "i4": "I32", "i8": "I64", "u2": "BF16", "f8": "F64"}


def weights(seed: int, *shape: int, scale: float = 0.05) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def tuned(array: NDArray[np.float32], seed: int, step: float = 0.001) -> NDArray[np.float32]:
    """After a fine-tune: every weight moved a little."""
    return (array + np.random.default_rng(seed).standard_normal(array.shape) * step).astype(np.float32)


def safetensors(arrays: Arrays) -> bytes:
    """Arrays of u2 are taken for bfloat16."""
    header, place = {}, 0
    for name, array in arrays.items():
        kind = SAFETENSORS[f"{array.dtype.kind}{array.dtype.itemsize}"]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [place, place + array.nbytes]}
        place += array.nbytes
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(array.tobytes() for array in arrays.values())


def pair(folder: Path, seed: int = 0, width: int = 64) -> tuple[Path, Path]:
    """A small model and its next version: matrices in two precisions, a vector, one part that stays as it is."""
    old = {
        "first.weight": weights(seed, width, 48),
        "first.bias": weights(seed + 1, width),
        "second.weight": weights(seed + 2, 32, width).astype(np.float16),
        "frozen.weight": weights(seed + 3, 32, width),
    }
    new = {name: tuned(array, seed + 9) for name, array in old.items() if name.startswith("first")}
    new["second.weight"] = tuned(old["second.weight"].astype(np.float32), seed + 10).astype(np.float16)
    new["frozen.weight"] = old["frozen.weight"]
    paths = folder / "old.safetensors", folder / "new.safetensors"
    for path, arrays in zip(paths, (old, new), strict=True):
        path.write_bytes(safetensors(arrays))
    return paths


# Protocol buffers, as far as ONNX needs them


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def onnx_tensor(name: str, array: NDArray[np.generic], beside: Mapping[str, str] | None = None) -> bytes:
    """A TensorProto; with `beside` its elements are in another file."""
    code = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7, "float16": 10}[array.dtype.name]
    body = b"".join(field(1, length) for length in array.shape) + field(2, code) + field(8, name)
    if beside is None:
        return body + field(9, array.tobytes())
    return body + b"".join(field(13, field(1, key) + field(2, value)) for key, value in beside.items()) + field(14, 1)


def onnx_node(kind: str, inputs: list[str], outputs: list[str]) -> bytes:
    return b"".join([*(field(1, name) for name in inputs), *(field(2, name) for name in outputs), field(4, kind)])


def onnx(nodes: list[bytes], tensors: list[bytes]) -> bytes:
    graph = b"".join([*(field(1, node) for node in nodes), field(2, "toy"), *(field(5, tensor) for tensor in tensors)])
    return field(1, 8) + field(7, graph)


# Breaking


def broken(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Copies with bytes changed, ranges cut out, doubled or put elsewhere, and ends cut off."""
    dice = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            place, length = dice.randrange(len(copy) + 1), dice.randint(1, 16)
            match dice.randrange(5):
                case 0:
                    copy[place : place + 1] = bytes([dice.randrange(256)])
                case 1:
                    del copy[place : place + length]
                case 2:
                    copy[place:place] = copy[place : place + length]
                case 3:
                    copy[place : place + 8] = dice.choice([b"\xff", b"\x7f", b"\x00", b"\x80"]) * 8
                case 4:
                    del copy[place:]
            copy = copy or bytearray(b"\0")
        yield bytes(copy)
