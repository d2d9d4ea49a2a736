"""What a parent and the process that computes for it say to each other.

Messages go over a socket that keeps their bounds, tensors through two rooms of shared memory: one for what goes in, one
for what comes out. The parent makes both rooms and seals their sizes, so that a child that has lost its mind cannot
pull the memory from under the parent. One question is under way at a time.

    parent                          child
    Compile ->                      compiles                          -> Ready | Refused
    Ask ->                          asks the runtime                  -> Value | Refused
    Room (with its descriptor) ->   maps it                           (no answer)
    Call ->                         infers                            -> Answer | Need | Refused
        after Need: Room ->         writes what it has                -> Answer
"""

import fcntl
import mmap
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from appliance.inference.port import DTYPES, Array, Plan, Spec

ALIGNMENT = 64  # bytes
LONGEST = 1 << 20  # bytes of a message


class Compile(Struct, tag=True, array_like=True):
    backend: str
    settings: dict[str, Any]
    path: str
    device: str
    plan: Plan


class Ask(Struct, tag=True, array_like=True):
    backend: str
    settings: dict[str, Any]
    device: str
    name: str


class Room(Struct, tag=True, array_like=True):
    """Its descriptor comes with it. `size` in bytes."""

    leaving: bool  # for what comes out
    size: int


class Slot(Struct, array_like=True):
    """A tensor in a room."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes


class Call(Struct, tag=True, array_like=True):
    rows: bool  # the one tensor is rows, any number of them
    slots: list[Slot]


class Ready(Struct, tag=True, array_like=True):
    device: str
    inputs: list[Spec]
    outputs: list[Spec]
    per_shape: bool


class Answer(Struct, tag=True, array_like=True):
    slots: list[Slot]


class Need(Struct, tag=True, array_like=True):
    size: int  # bytes of a room that holds the answer


class Value(Struct, tag=True, array_like=True):
    value: str | int | float | list[str] | None


class Refused(Struct, tag=True, array_like=True):
    of_model: bool  # the model's fault, not the device's
    message: str
    remedy: str


Question = Compile | Ask | Room | Call
Reply = Ready | Answer | Need | Value | Refused

encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


class Memory:
    """A room as one side sees it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(descriptor, size)

    def view(self, slot: Slot) -> Array:
        """ValueError where the slot is not inside the room."""
        if slot.dtype not in DTYPES or slot.offset < 0:
            raise ValueError(f"there is no tensor of {slot.dtype} at {slot.offset}")
        count = int(np.prod(slot.shape, dtype=np.int64)) if slot.shape else 1
        if not count:
            return np.zeros(slot.shape, slot.dtype)
        return np.frombuffer(self._map, slot.dtype, count, slot.offset).reshape(slot.shape)

    def write(self, slots: Sequence[Slot], tensors: Iterable[Array]) -> None:
        for slot, tensor in zip(slots, tensors, strict=True):
            self.view(slot)[...] = tensor


def laid_out(tensors: Iterable[Array]) -> tuple[list[Slot], int]:
    """Where the tensors would lie in a room, and how large it must be."""
    slots, end = [], 0
    for tensor in tensors:
        slots.append(Slot(tensor.dtype.name, tensor.shape, end))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return slots, end


def make_room(size: int) -> int:
    """A descriptor of shared memory whose size nobody changes any more."""
    descriptor = os.memfd_create("millwright-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def send_room(channel: socket.socket, leaving: bool, size: int) -> Memory:
    descriptor = make_room(size)
    try:
        socket.send_fds(channel, [encode(Room(leaving, size))], [descriptor])
        return Memory(descriptor, size)
    finally:
        os.close(descriptor)
