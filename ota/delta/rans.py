"""Interleaved static rANS over many lanes, in numpy: the reference that the compiled kernel must equal.

A stream is a sequence of calls, each with one table index a symbol. Symbol i of a call belongs to lane i mod lanes, so
every call starts at lane 0 and a short call costs nothing. A lane is a 32-bit state, renewed by 16-bit words, which the
decoder takes in the order of the symbols. The states go on from call to call; at the end of a block they must all be
back at their start, LOW, which is where the encoder began.
"""

import numpy as np
from numpy.typing import NDArray

from ota.delta.errors import PatchError

PRECISION = 13  # bits of a probability
TOTAL = 1 << PRECISION
LOW = 1 << 16  # the least value of a state between two symbols
SYMBOLS = 256
MIN_LANES, MAX_LANES = 8, 4096

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
States = NDArray[np.uint32]


class Tables:
    """Frequencies of `SYMBOLS` symbols in each table, each row adding up to TOTAL."""

    def __init__(self, frequencies: NDArray[np.uint32]) -> None:
        if frequencies.ndim != 2 or frequencies.shape[1] != SYMBOLS or len(frequencies) > SYMBOLS:
            raise PatchError("context tables of a wrong shape")
        if len(frequencies) and (frequencies.astype(np.int64).sum(axis=1) != TOTAL).any():
            raise PatchError("a context table does not add up")
        self.frequencies = frequencies.astype(np.uint32)
        starts = np.cumsum(self.frequencies, axis=1, dtype=np.uint32) - self.frequencies
        self.packed = np.ascontiguousarray((self.frequencies << 16 | starts).reshape(-1), dtype=np.uint32)
        slots = [np.repeat(np.arange(SYMBOLS, dtype=np.uint8), row) for row in self.frequencies]
        self.slots = np.concatenate(slots) if slots else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self.frequencies)


def start(lanes: int) -> States:
    return np.full(lanes, LOW, np.uint32)


def decode(tables: Tables, states: States, words: Words, position: int, chosen: Bytes) -> tuple[Bytes, int]:
    """The symbols of one call and the position in `words` after it; `states` move on in place.

    `chosen` holds the table of every symbol, each below len(tables). PatchError where the words run out.
    """
    symbols = np.empty(len(chosen), np.uint8)
    lanes = len(states)
    for begin in range(0, len(chosen), lanes):
        table = chosen[begin : begin + lanes].astype(np.uint32)
        lane = states[: len(table)]
        slot = lane & np.uint32(TOTAL - 1)
        symbol = tables.slots.take((table << np.uint32(PRECISION)) | slot)
        packed = tables.packed.take((table << np.uint32(8)) | symbol)
        lane >>= np.uint32(PRECISION)
        lane *= packed >> np.uint32(16)
        lane += slot - (packed & np.uint32(0xFFFF))
        position = _renew(lane, words, position)
        symbols[begin : begin + lanes] = symbol
    return symbols, position


def _renew(lane: States, words: Words, position: int) -> int:
    short = np.flatnonzero(lane < LOW)
    after = position + len(short)
    if after > len(words):
        raise PatchError("a segment's symbols end too early")
    lane[short] = (lane[short] << np.uint32(16)) | words[position:after]
    return after


def encode_call(tables: Tables, states: States, chosen: Bytes, symbols: Bytes) -> Words:
    """The words of one call, given its tables and symbols; `states` go back in place to where its decoder starts.

    Calls are encoded from the last to the first. Every symbol must have a frequency in its table.
    """
    lanes = len(states)
    packed = tables.packed.take((chosen.astype(np.uint32) << np.uint32(8)) | symbols)
    frequencies, starts = packed >> np.uint32(16), packed & np.uint32(0xFFFF)
    found = [np.empty(0, np.uint16)]
    for begin in reversed(range(0, len(chosen), lanes)):
        frequency = frequencies[begin : begin + lanes]
        lane = states[: len(frequency)]
        full = (lane >> np.uint32(32 - PRECISION)) >= frequency
        found.append(lane[full].astype(np.uint16))
        lane[full] >>= np.uint32(16)
        quotient, remainder = np.divmod(lane, frequency)
        lane[:] = (quotient << np.uint32(PRECISION)) + remainder + starts[begin : begin + lanes]
    return np.concatenate(found[::-1])
