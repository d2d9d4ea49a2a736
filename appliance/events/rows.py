"""Readings as rows: the bare JSON form, read straight into the values of points that are known beforehand.

A device sends the same points all its life. A decoder made for just these takes half the time of one that has to find
out what there is, and makes no dictionary that somebody takes apart again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec
from msgspec.structs import astuple

Row = tuple[float, ...]
Reader = Callable[[bytes], Row | None]

MAX_POINTS = 256  # of a reader; beyond, its making costs more than it saves
MAX_READERS = 512  # kept; about 10 KB each
_FULL_FORM = frozenset({"at", "values"})  # names that make a payload more than a bare map of points


def reader(points: Sequence[str]) -> Reader | None:
    """Reads payloads that hold these points and nothing else, in any order, into a row in the order of `points`.

    It gives what `codec.decode_reading` would, or None: then that is the one to ask, which also knows what is wrong.
    There is no reader for points that only the full form can carry, nor for names that JSON escapes.
    """
    if len(points) > MAX_POINTS or not points or not _FULL_FORM.isdisjoint(points):
        return None
    return _reader(tuple(points))


@lru_cache(MAX_READERS)
def _reader(points: tuple[str, ...]) -> Reader | None:
    names = {f"p{number}": point for number, point in enumerate(points)}
    fields = [(name, float) for name in names]
    try:
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
    except ValueError:
        return None  # a quotation mark, a backslash or a control character
    decode = msgspec.json.Decoder(row).decode

    def read(payload: bytes) -> Row | None:
        try:
            return astuple(decode(payload))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    return read
