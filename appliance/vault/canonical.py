"""A reader of canonical CBOR (RFC 8949, 4.2.1) that knows three things: arrays, natural numbers and byte strings.

One value has one encoding: a longer head than needed, an indefinite length, a tag or a byte too many is refused. A
length is compared with what is there before anything is read.
"""

from appliance.errors import SealError

_NUMBER, _BYTES, _ARRAY = 0, 2, 4  # major types
_SHORTEST = {1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}  # the least number that needs so many bytes


class Reader:
    """Reads `data` from its start to `end`. Every refusal is a SealError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def array(self, length: int) -> None:
        found = self._head(_ARRAY)
        if found != length:
            raise SealError(f"an array of {found} where one of {length} stands")

    def items(self, most: int) -> int:
        """How many items the array has that begins here."""
        found = self._head(_ARRAY)
        if found > most:
            raise SealError(f"an array of {found}, more than {most}")
        return found

    def number(self, most: int) -> int:
        found = self._head(_NUMBER)
        if found > most:
            raise SealError(f"{found} is more than {most}")
        return found

    def string(self, least: int, most: int) -> bytes:
        length = self._head(_BYTES)
        if not least <= length <= most or length > len(self._data) - self._at:
            raise SealError(f"{length} bytes where {least} to {most} stand, or cut short")
        self._at += length
        return self._data[self._at - length : self._at]

    def text(self, least: int, most: int) -> str:
        """A byte string that is UTF-8 and can be printed; lengths in bytes."""
        try:
            text = self.string(least, most).decode()
        except UnicodeDecodeError as error:
            raise SealError("a name that is not text") from error
        if not text.isprintable():
            raise SealError("a name that cannot be printed")
        return text

    def end(self) -> None:
        if self._at != len(self._data):
            raise SealError(f"{len(self._data) - self._at} bytes too many")

    def _head(self, major: int) -> int:
        first = self._take(1)[0]
        if first >> 5 != major:
            raise SealError(f"major type {first >> 5} where {major} stands")
        short = first & 31
        if short < 24:
            return short
        if short > 27:
            raise SealError("a length that is not written out")
        size = 1 << short - 24
        value = int.from_bytes(self._take(size), "big")
        if value < _SHORTEST[size]:
            raise SealError("a number is written longer than it is")
        return value

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise SealError("cut short")
        self._at += size
        return taken
