"""The two coders that `predictors` speaks to: one that notes what is to be coded, one that reads it back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta import rans, tokens
from ota.delta.errors import PatchError
from ota.delta.integers import FORMS, Ordered, store
from ota.delta.kernel import Kernel
from ota.delta.tables import Book
from ota.delta.tensors import Kind
from ota.delta.terms import Terms, left_over, place

Array = NDArray[Any]
Levels = NDArray[np.uint8] | None
ESCAPE = 0  # the token of a fresh float that is out of the tokens' range
FRESH_TOKENS = 254


def fresh_split(kind: Kind, elements: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint8]]:
    """Floats by themselves: the exponent and two mantissa bits as a token; sign and lower mantissa raw."""
    form = FORMS[kind]
    bits = elements.astype(np.int64)
    sign, magnitude = bits >> (form.width - 1), bits & ((1 << (form.width - 1)) - 1)
    low = form.mantissa - 2
    place = (magnitude >> low) - _first(kind) + 1
    inside = (place > 0) & (place <= FRESH_TOKENS)
    symbols = np.where(inside, place, ESCAPE).astype(np.uint8)
    raw = np.where(inside, (sign << low) | (magnitude & ((1 << low) - 1)), bits).astype(np.uint32)
    return symbols, raw, fresh_widths(kind, symbols)


def fresh_widths(kind: Kind, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    form = FORMS[kind]
    return np.where(symbols == ESCAPE, np.uint8(form.width), np.uint8(form.mantissa - 1))


def fresh_join(kind: Kind, symbols: NDArray[np.uint8], raw: NDArray[np.uint32]) -> Ordered:
    """Ordered integers from what `fresh_split` gave."""
    form = FORMS[kind]
    low = form.mantissa - 2
    place = (symbols.astype(np.int64) + _first(kind) - 1) << low
    found = raw.astype(np.int64)
    magnitude = place | (found & ((1 << low) - 1))
    sign = -(found >> low & 1)
    whole = np.int64(1) << (form.width - 1)
    escaped = np.where(found >= whole, ~(found - whole), found)
    return np.where(symbols == ESCAPE, escaped, magnitude ^ sign).astype(np.int32)


def _first(kind: Kind) -> int:
    """The token place counted as one: 2^-60 or the least, so that 254 places reach beyond any weight."""
    form = FORMS[kind]
    return max(0, (-59 - form.emin) << 2)


class Noted:
    """The encoder's coder: contexts, symbols and raw bits, in the order of the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[NDArray[np.uint16], NDArray[np.uint8]]] = []
        self.raw: list[tuple[NDArray[np.uint32], NDArray[np.uint8]]] = []

    def numbers(self, classes: NDArray[np.uint8], given: Ordered | None, levels: Levels = None) -> Ordered:
        assert given is not None
        contexts = tokens.contexts(classes, None)
        self._note(tokens.META, contexts if levels is None else contexts + levels, given)
        return given

    def leaning(self, classes: NDArray[np.uint8], given: Ordered | None, lean: Ordered) -> Ordered:
        assert given is not None
        self._note(tokens.META, tokens.leaning(classes, lean), tokens.turned(given, lean))
        return given

    def predicted(self, terms: Terms, given: Ordered | None) -> bytes:
        assert given is not None
        places = place(terms)
        contexts = tokens.contexts(places.classes, places.cells.fraction)
        self._note(tokens.family(terms.kind), contexts, left_over(terms, given, places.cells))
        return store(terms.kind, given)

    def fresh(self, kind: Kind, classes: NDArray[np.uint8], given: Array | None) -> bytes:
        assert given is not None
        symbols, raw, widths = fresh_split(kind, given)
        self._keep(tokens.FRESH, tokens.contexts(classes, None), symbols)
        self.raw.append((raw, widths))
        return given.tobytes()

    def _note(self, family: int, contexts: NDArray[np.uint16], given: Ordered) -> None:
        symbols, raw = tokens.split(given)
        self._keep(family, contexts, symbols)
        widths = tokens.WIDTHS.take(symbols)
        wide = np.flatnonzero(widths)
        self.raw.append((raw[wide], widths[wide]))

    def _keep(self, family: int, contexts: NDArray[np.uint16], symbols: NDArray[np.uint8]) -> None:
        self.calls.append((contexts + np.uint16(family * tokens.CONTEXTS), symbols))


class Maps:
    """For every family the table of a context, directly by class and fraction."""

    def __init__(self, book: Book) -> None:
        contexts = (np.arange(tokens.CLASSES)[:, None] * tokens.LEVELS) + tokens.LEVEL
        self.book = book
        self.by_cell = [np.ascontiguousarray(chosen[contexts].reshape(-1)) for chosen in book.chosen]
        self.by_class = [np.ascontiguousarray(chosen[:: tokens.LEVELS]) for chosen in book.chosen]


class Reading:
    """The decoder's coder over one segment's words and raw bits; `states` go on from segment to segment."""

    def __init__(
        self, maps: Maps, states: rans.States, words: rans.Words, raw: bytes, kernel: Kernel | None = None
    ) -> None:
        self._maps, self._states, self._words = maps, states, words
        self._raw = tokens.Bits(raw)
        self._kernel = kernel
        self._decode = kernel.decode if kernel else rans.decode
        self._position = 0

    def numbers(self, classes: NDArray[np.uint8], given: Ordered | None, levels: Levels = None) -> Ordered:
        if levels is None:
            chosen = self._maps.by_class[tokens.META].take(classes)
        else:
            chosen = self._maps.book.chosen[tokens.META].take(tokens.contexts(classes, None) + levels)
        return tokens.join(self._symbols(chosen), self._raw)

    def leaning(self, classes: NDArray[np.uint8], given: Ordered | None, lean: Ordered) -> Ordered:
        chosen = self._maps.book.chosen[tokens.META].take(tokens.leaning(classes, lean))
        return tokens.turned(tokens.join(self._symbols(chosen), self._raw), lean)

    def predicted(self, terms: Terms, given: Ordered | None) -> bytes:
        tables = self._maps.by_cell[tokens.family(terms.kind)]
        if self._kernel is not None:
            numbers, toward, chosen = self._kernel.place(terms, tables)
            self._kernel.join(self._symbols(chosen), self._raw, numbers, toward)
            return self._kernel.store(terms.kind, numbers)
        places = place(terms)
        which = (places.classes.astype(np.uint16) << np.uint16(8)) | places.cells.fraction
        residuals = tokens.join(self._symbols(tables.take(which)), self._raw)
        return store(terms.kind, places.cells.ordered + residuals * places.cells.toward)

    def fresh(self, kind: Kind, classes: NDArray[np.uint8], given: Array | None) -> bytes:
        symbols = self._symbols(self._maps.by_class[tokens.FRESH].take(classes))
        return store(kind, fresh_join(kind, symbols, self._raw.take(fresh_widths(kind, symbols))))

    def _symbols(self, chosen: NDArray[np.uint8]) -> NDArray[np.uint8]:
        tables = self._maps.book.tables
        if not len(tables):
            raise PatchError("symbols without a context table")
        symbols, self._position = self._decode(tables, self._states, self._words, self._position, chosen)
        return symbols

    def finish(self) -> None:
        """PatchError unless everything was used."""
        if self._position != len(self._words) or self._raw.limit - self._raw.position >= 8:
            raise PatchError("a segment holds more than its parts need")
