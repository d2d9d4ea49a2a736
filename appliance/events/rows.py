"""Readings as rows: the bare JSON form, read straight into the values of points that are known beforehand.

A device sends the same points all its life. A decoder made for just these takes half the time of one that has to find
out what there is, and makes no dictionary that somebody takes apart again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

Row = tuple[float, ...]
Decode = Callable[[bytes], msgspec.Struct]  # whose fields are the row: `msgspec.structs.astuple` gives it

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)  # what a Decode raises

MAX_POINTS = 256  # of a decoder; beyond, its making costs more than it saves
MAX_DECODERS = 512  # kept; about 10 KB each
_FULL_FORM = frozenset({"at", "values"})  # names that make a payload more than a bare map of points


def decoder(points: Sequence[str]) -> Decode | None:
    """Reads payloads that hold these points and nothing else, in any order, into a row in the order of `points`.

    It gives what `codec.decode_reading` would, or raises one of UNREADABLE: then that is the one to ask, which also
    knows what is wrong. There is none for points that only the full form can carry, nor for names that JSON escapes.
    """
    if len(points) > MAX_POINTS or not points or not _FULL_FORM.isdisjoint(points):
        return None
    return _decoder(tuple(points))


@lru_cache(MAX_DECODERS)
def _decoder(points: tuple[str, ...]) -> Decode | None:
    names = {f"p{number}": point for number, point in enumerate(points)}
    fields = [(name, float) for name in names]
    try:
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
    except ValueError:
        return None  # a quotation mark, a backslash or a control character
    return msgspec.json.Decoder(row).decode
