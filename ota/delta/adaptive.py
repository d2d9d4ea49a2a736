"""An adaptive binary range coder for the few hundred numbers that a header holds; slow, and small where they are few.

The carry-less coder of 32-bit ranges with 12-bit probabilities that move by a sixteenth of the way with every bit.
"""

from collections import defaultdict
from collections.abc import Hashable

from ota.delta.errors import PatchError

_HALF, _RATE, _TOP = 1 << 15, 4, 1 << 24
_MAX_BITS = 40


class Writer:
    def __init__(self) -> None:
        self._low, self._range = 0, 0xFFFFFFFF
        self._out = bytearray()
        self._odds: dict[Hashable, int] = defaultdict(lambda: _HALF)

    def bit(self, context: Hashable, bit: int) -> None:
        odds = self._odds[context]
        bound = (self._range >> 16) * odds
        if bit:
            self._low += bound
            self._range -= bound
            self._odds[context] = odds - (odds >> _RATE)
        else:
            self._range = bound
            self._odds[context] = odds + ((65536 - odds) >> _RATE)
        while self._range < _TOP:
            self._shift()

    def _shift(self) -> None:
        if self._low >> 32:
            self._carry()
        self._out.append(self._low >> 24 & 255)
        self._low = self._low << 8 & 0xFFFFFFFF
        self._range <<= 8

    def _carry(self) -> None:
        self._low &= 0xFFFFFFFF
        place = len(self._out) - 1
        while self._out[place] == 255:
            self._out[place] = 0
            place -= 1
        self._out[place] += 1

    def number(self, context: Hashable, number: int) -> None:
        """A natural number, by its length and then its bits, the two leading ones in contexts."""
        length = (number + 1).bit_length() - 1
        for step in range(length):
            self.bit((context, "length", step), 1)
        self.bit((context, "length", length), 0)
        for place in reversed(range(length)):
            near = place >= length - 2
            self.bit((context, length, place, number + 1 >> place + 1) if near else None, number + 1 >> place & 1)

    def signed(self, context: Hashable, number: int) -> None:
        self.number(context, 2 * number if number >= 0 else -2 * number - 1)

    def finish(self) -> bytes:
        for _ in range(4):
            if self._low >> 32:
                self._carry()
            self._out.append(self._low >> 24 & 255)
            self._low = self._low << 8 & 0xFFFFFFFF
        return bytes(self._out).rstrip(b"\0")  # the reader takes zeros beyond the end


class Reader:
    """PatchError where more is asked than the bytes can hold."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 4
        self._range = 0xFFFFFFFF
        self._code = int.from_bytes((data + bytes(4))[:4], "big")
        self._odds: dict[Hashable, int] = defaultdict(lambda: _HALF)

    def bit(self, context: Hashable) -> int:
        odds = self._odds[context]
        bound = (self._range >> 16) * odds
        bit = int(self._code >= bound)
        if bit:
            self._code -= bound
            self._range -= bound
            self._odds[context] = odds - (odds >> _RATE)
        else:
            self._range = bound
            self._odds[context] = odds + ((65536 - odds) >> _RATE)
        while self._range < _TOP:
            self._range = self._range << 8
            self._code = self._code << 8 & 0xFFFFFFFF | self._next()
        return bit

    def _next(self) -> int:
        self._place += 1
        if self._place > len(self._data) + 64:
            raise PatchError("the context tables end too early")
        return self._data[self._place - 1] if self._place <= len(self._data) else 0

    def number(self, context: Hashable) -> int:
        length = 0
        while self.bit((context, "length", length)):
            length += 1
            if length > _MAX_BITS:
                raise PatchError("the context tables hold a number without end")
        number = 1
        for place in reversed(range(length)):
            near = place >= length - 2
            number = number << 1 | self.bit((context, length, place, number) if near else None)
        return number - 1

    def signed(self, context: Hashable) -> int:
        number = self.number(context)
        return number // 2 if number % 2 == 0 else -(number + 1) // 2
