"""Tensors of commands over the bus: in the command itself where they are small, else in shared memory or a file.

An input is one of

    [[0.1, 0.2], [0.3, 0.4]]                     numbers, nested as the shape has it
    {"data": [0.1, ...], "shape": [2, 2]}        numbers, flat
    {"shm": "/name", "shape": [1, 3, 224, 224], "offset": 0}     POSIX shared memory, little-endian, row by row
    {"file": "/var/lib/camera/last.npy"}         a numpy file below one of the configured folders

An output goes into the answer as {"dtype", "shape", "data"}, or where {"shm": "/name", "offset": 0} says.

ModelError names the tensor, what it is and what it should be.
"""

import io
import math
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from appliance.errors import ModelError, RequestError
from appliance.inference import tensors
from appliance.inference.port import Array, Spec
from appliance.services.kserve import regions
from appliance.services.kserve.protocol import numbers

_Size = Annotated[int, Meta(ge=0, le=1 << 40)]
_Shape = Annotated[list[_Size], Meta(max_length=16)]
_NUMBER_BYTES = 9  # of a number in CBOR, at most


class _Inline(msgspec.Struct, forbid_unknown_fields=True):
    data: list[Any]
    shape: _Shape


class _Shared(msgspec.Struct, forbid_unknown_fields=True):
    shm: str
    shape: _Shape
    offset: _Size = 0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    file: str


class _Target(msgspec.Struct, forbid_unknown_fields=True):
    shm: str
    offset: _Size = 0


_FORMS: dict[str, type[msgspec.Struct]] = {"data": _Inline, "shm": _Shared, "file": _File}


class Places:
    """`folders` are those below which files may be named; `inline` bytes may stand in a command or its answer,
    `largest` bytes in a file or in shared memory."""

    def __init__(self, folders: Sequence[str], inline: int, largest: int) -> None:
        self._folders = [Path(folder).expanduser().absolute() for folder in folders]
        self._inline, self._largest = inline, largest

    def read(self, inputs: Mapping[str, Any], specs: Sequence[Spec]) -> dict[str, Array]:
        known = {spec.name: spec for spec in specs}
        for name in inputs:
            if name not in known:
                raise ModelError(f"the model has no input '{name[:100]}'", f"Its inputs are: {', '.join(known)}.")
        return {name: self._tensor(known[name], given) for name, given in inputs.items()}

    def write(self, outputs: Mapping[str, Array], wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Put each output where it is wanted: what is told of it."""
        return {name: self._put(name, outputs[name], wanted[name]) for name in outputs}

    def small(self, name: str, value: Any) -> Any:
        """The value itself. ModelError where it is too large for an answer."""
        size = len(msgspec.json.encode(value))
        if size > self._inline:
            raise ModelError(
                f"'{name}' has {size:,} bytes: too many for the bus", "Ask for less, or use shared memory."
            )
        return value

    def _tensor(self, spec: Spec, given: Any) -> Array:
        form = next((key for key in _FORMS if isinstance(given, dict) and key in given), "")
        try:
            if isinstance(given, list):
                return self._of_numbers(spec, given, None)
            asked = msgspec.convert(given, _FORMS[form]) if form else None
            if isinstance(asked, _Inline):
                return self._of_numbers(spec, asked.data, asked.shape)
            if isinstance(asked, _Shared):
                return self._of_memory(spec, asked)
            if isinstance(asked, _File):
                return self._of_file(spec, asked.file)
        except (ValueError, msgspec.ValidationError, RequestError) as error:
            raise ModelError(f"input '{spec.name}': {error}", f"It is {tensors.text(spec)}.") from None
        raise ModelError(
            f"input '{spec.name}' is neither numbers nor a place", "Give a list, or a table with data, shm or file."
        )

    def _of_numbers(self, spec: Spec, data: list[Any], shape: list[int] | None) -> Array:
        found = shape if shape is not None else list(np.shape(data))
        if math.prod(found) * _NUMBER_BYTES > self._inline:
            raise ValueError(f"{math.prod(found):,} numbers are too many for the bus: use shared memory or a file")
        return numbers(data, spec.dtype, found)

    def _of_memory(self, spec: Spec, asked: _Shared) -> Array:
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        size = math.prod(asked.shape) * dtype.itemsize
        if size > self._largest:
            raise ValueError(f"{size:,} bytes are too many: at most {self._largest:,}")
        data = regions.read_once(asked.shm, asked.offset, size)
        return np.frombuffer(data, dtype).reshape(asked.shape).astype(spec.dtype, copy=False)

    def _of_file(self, spec: Spec, name: str) -> Array:
        data = _read(self._folder_of(name), self._largest)
        found = npy(data)
        if found.dtype != spec.dtype:
            raise ValueError(f"'{name}' holds {found.dtype}")
        return found

    def _folder_of(self, name: str) -> tuple[Path, tuple[str, ...]]:
        """One of the configured folders, and the way from there. ValueError for any other file."""
        path = Path(name)
        for folder in self._folders:
            if path.is_absolute() and ".." not in path.parts and path.is_relative_to(folder) and path != folder:
                return folder, path.relative_to(folder).parts
        known = ", ".join(map(str, self._folders)) or "none"
        raise ValueError(f"'{name[:200]}' is not below one of the folders of `infer.folders` ({known})")

    def _put(self, name: str, array: Array, place: Any) -> dict[str, Any]:
        told = {"dtype": array.dtype.name, "shape": list(array.shape)}
        if place is None:
            if array.size * _NUMBER_BYTES > self._inline:
                raise ModelError(
                    f"output '{name}' has {array.size:,} numbers: too many for the bus",
                    f'Ask for it in shared memory: outputs = {{"{name}": {{"shm": "/name"}}}}.',
                )
            return {**told, "data": array.reshape(-1).tolist()}
        try:
            target = msgspec.convert(place, _Target)
            little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
            regions.write_once(target.shm, target.offset, little.reshape(-1).view(np.uint8).data)
        except (msgspec.ValidationError, RequestError) as error:
            raise ModelError(f"output '{name}': {error}", "Name shared memory that has room for it.") from None
        return {**told, "shm": target.shm, "offset": target.offset, "bytes": array.nbytes}


def _read(place: tuple[Path, tuple[str, ...]], largest: int) -> bytes:
    """A plain file's content. No part of the way below the folder may be a link. ValueError, with the reason."""
    folder, parts = place
    try:
        with ExitStack() as opened:
            descriptor = _open(opened, folder, os.O_DIRECTORY)
            for part in parts[:-1]:
                descriptor = _open(opened, part, os.O_DIRECTORY | os.O_NOFOLLOW, descriptor)
            descriptor = _open(opened, parts[-1], os.O_NOFOLLOW, descriptor)
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > largest:
                raise ValueError(f"'{parts[-1]}' is no plain file of at most {largest:,} bytes")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(largest)
    except OSError as error:
        raise ValueError(f"'{folder.joinpath(*parts)}' cannot be read: {error.strerror}") from None


def _open(opened: ExitStack, path: Path | str, flags: int, above: int | None = None) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags, dir_fd=above)
    opened.callback(os.close, descriptor)
    return descriptor


def npy(data: bytes) -> Array:
    """The array of a .npy file. ValueError where it is none, or holds objects."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"the numpy file is of version {version}")
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("the numpy file holds objects")
    count = math.prod(shape)
    if len(data) - stream.tell() != count * dtype.itemsize:
        raise ValueError(f"the numpy file is cut short: {count} values of {dtype} are not there")
    found = np.frombuffer(data, dtype, count, stream.tell())
    ordered = found.reshape(shape[::-1]).T if by_columns else found.reshape(shape)
    return ordered.astype(dtype.newbyteorder("="), copy=False)
