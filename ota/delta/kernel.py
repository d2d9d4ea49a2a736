"""The compiled kernel: the decoder's inner loops in C, where a compiler was at hand; absent without harm.

`python -m ota.delta.compiling` makes it. A kernel carries in its name the digest of its source and the machine it is
for, so none is ever taken for another. It is looked for beside this module, or in the folder that
MILLWRIGHT_DELTA_KERNEL names; MILLWRIGHT_DELTA_KERNEL=off does without. Before it is used it must give the bits of the
numpy reference on a few numbers of every kind: what a compiler, a processor or a library's rounding mode changed is
noticed, and numpy does the work.
"""

import ctypes
import hashlib
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta import rans, tokens
from ota.delta.errors import PatchError
from ota.delta.integers import FORMS, HALVES, store
from ota.delta.tensors import Kind
from ota.delta.terms import Terms, place

SOURCE = Path(__file__).with_name("kernel.c")
WHERE = "MILLWRIGHT_DELTA_KERNEL"
Array = NDArray[Any]
_NUMBERS = {kind: number for number, kind in enumerate(FORMS)}


class _Terms(ctypes.Structure):
    """As in kernel.c."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("rows", "columns", "groups", "shared")]
        + [(name, ctypes.c_void_p) for name in ("old", "factor", "old_zero", "new_zero", "change", "lift")]
        + [(name, ctypes.c_void_p) for name in ("row_classes", "column_classes", "halves", "tables")]
        + [(name, ctypes.c_int32) for name in ("kind", "mantissa", "emin", "top", "low", "high")]
        + [(name, ctypes.c_void_p) for name in ("numbers", "toward", "chosen")]
    )


class Kernel:
    """One loaded library. Arrays go in contiguous and of the types named; nothing is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        word, array = ctypes.c_int64, ctypes.c_void_p
        self._symbols = library.millwright_symbols
        self._symbols.argtypes = [array, array, array, word, array, word, word, array, word, array]
        self._join = library.millwright_join
        self._join.argtypes = [array, word, array, array, array, array, word, word, array, array]
        self._symbols.restype = self._join.restype = word
        self._store = library.millwright_store
        self._store.argtypes = [ctypes.c_int32, array, word, array]
        self._place = library.millwright_place
        self._place.argtypes = [ctypes.POINTER(_Terms)]
        self._store.restype = self._place.restype = None

    def decode(
        self, tables: rans.Tables, states: rans.States, words: rans.Words, position: int, chosen: rans.Bytes
    ) -> tuple[rans.Bytes, int]:
        """As `rans.decode`."""
        symbols = np.empty(len(chosen), np.uint8)
        if not len(words):
            words = np.zeros(1, np.uint16)[:0]
        chosen = np.ascontiguousarray(chosen)
        after = self._symbols(
            *(tables.slots.ctypes.data, tables.packed.ctypes.data, states.ctypes.data, len(states)),
            *(words.ctypes.data, len(words), position, chosen.ctypes.data, len(chosen), symbols.ctypes.data),
        )
        if after < 0:
            raise PatchError("a segment's symbols end too early")
        return symbols, int(after)

    def place(self, terms: Terms, tables: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
        """Ordered integers, ways to the nearer neighbour and tables; `tables` by class and fraction."""
        form = FORMS[terms.kind]
        rows, groups, _ = terms.grid
        numbers, toward = np.empty(terms.count, np.int32), np.empty(terms.count, np.int8)
        chosen = np.empty(terms.count, np.uint8)
        given = [self._factors(terms, part) for part in (terms.factor, terms.old_zero, terms.new_zero)]
        change = None if terms.change is None else np.ascontiguousarray(terms.change, np.float64)
        classes = [
            None if part is None else np.ascontiguousarray(part, np.int32)
            for part in (terms.row_classes, terms.column_classes)
        ]
        lift = self._factors(terms, terms.lift)
        old = None if terms.old is None else np.frombuffer(terms.old, np.uint8)
        arrays = [old, *given, change, lift, *classes, HALVES, tables, numbers, toward, chosen]
        before, factor, old_zero, new_zero, changed, lifted, by_row, by_column, halves, table, *out = map(
            _address, arrays
        )
        self._place(
            ctypes.byref(
                _Terms(
                    *(terms.rows, terms.columns, groups, int(rows == 1 and terms.rows > 1)),
                    *(before, factor, old_zero, new_zero, changed, lifted, by_row, by_column, halves, table),
                    *(_NUMBERS[terms.kind], form.mantissa, form.emin, form.top, form.low, form.high),
                    *out,
                )
            )
        )
        return numbers, toward, chosen

    @staticmethod
    def _factors(terms: Terms, part: Array | None) -> Array | None:
        if part is None:
            return None
        rows, groups, _ = terms.grid
        return np.ascontiguousarray(np.broadcast_to(part, (rows, groups, 1)), np.float64)

    def join(self, symbols: rans.Bytes, raw: tokens.Bits, numbers: Array, toward: Array) -> None:
        """Adds the residuals to `numbers` in place."""
        after = self._join(
            *(symbols.ctypes.data, len(symbols), tokens.BASE.ctypes.data, tokens.SIGN.ctypes.data),
            *(tokens.WIDTHS.ctypes.data, raw.data.ctypes.data, raw.limit, raw.position),
            *(toward.ctypes.data, numbers.ctypes.data),
        )
        if after < 0:
            raise PatchError("a segment's raw bits end too early")
        raw.position = int(after)

    def store(self, kind: Kind, numbers: Array) -> bytes:
        """As `integers.store`."""
        data = np.empty(len(numbers) * FORMS[kind].width // 8, np.uint8)
        self._store(_NUMBERS[kind], numbers.ctypes.data, len(numbers), data.ctypes.data)
        return data.tobytes()


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


@cache
def available() -> Kernel | None:
    """The kernel for this machine, where there is one that gives the reference's bits."""
    for folder in _folders():
        path = folder / name()
        if path.is_file():
            kernel = load(path)
            if kernel is not None:
                return kernel
    return None


def _folders() -> list[Path]:
    named = os.environ.get(WHERE)
    if named == "off":
        return []
    return [Path(named)] if named else [SOURCE.parent]


def name() -> str:
    return f"kernel-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}-{platform.machine()}.so"


def load(path: Path) -> Kernel | None:
    """None where the library does not load or gives other bits than numpy."""
    try:
        kernel = Kernel(path)
    except (OSError, AttributeError):
        return None
    return kernel if all(agrees(kernel, kind, seed) for seed, kind in enumerate(FORMS)) else None


def agrees(kernel: Kernel, kind: Kind, seed: int, rows: int = 6, columns: int = 40) -> bool:
    """Whether both place the same predictions alike, subnormal and infinite ones among them."""
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, 256, tokens.CLASSES * 256, np.uint8)
    terms = Terms(
        kind=kind,
        rows=rows,
        columns=columns,
        old=rng.bytes(rows * columns * FORMS[kind].width // 8),
        row_classes=rng.integers(-20, 20, rows, np.int32),
        column_classes=rng.integers(-3, 4, columns, np.int32),
        factor=rng.normal(1, 0.3, (rows, 4, 1)),
        change=np.rint(rng.normal(0, 1e5, (rows, columns))),
        lift=np.exp2(rng.normal(-18, 4, (rows, 4, 1))),
        old_zero=rng.integers(-3, 4, (rows, 4, 1)).astype(np.float64),
        new_zero=rng.integers(-3, 4, (rows, 4, 1)).astype(np.float64),
    )
    with np.errstate(all="ignore"):
        places = place(terms)
    numbers, toward, chosen = kernel.place(terms, tables)
    wanted = tables[places.classes.astype(np.int64) << 8 | places.cells.fraction]
    same = (numbers == places.cells.ordered).all() and (toward == places.cells.toward).all()
    return bool(same and (chosen == wanted).all() and kernel.store(kind, numbers) == store(kind, numbers))
