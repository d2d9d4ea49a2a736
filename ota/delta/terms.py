"""One block's prediction, term by term, and where in its cell every number of it lands. The reference of the kernel.

    predicted = (old - old zero) * factor + change * lift + new zero

Each step is one IEEE operation in the floats the kind is worked with; change * lift is rounded in float64 first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta import tokens
from ota.delta.integers import FORMS, Cells, cells, load, values
from ota.delta.tensors import Kind

Array = NDArray[Any]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Terms:
    """`old` bytes; `change` float64 [rows, columns]; classes int32; all else float64 [rows or 1, groups, 1]."""

    kind: Kind
    rows: int
    columns: int
    old: bytes | None
    row_classes: Ints
    column_classes: Ints | None = None
    factor: Array | None = None
    change: Array | None = None
    lift: Array | None = None
    old_zero: Array | None = None
    new_zero: Array | None = None

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows, groups and columns of a group; one of all where one factor is for all."""
        shaped = self.factor if self.factor is not None else self.lift
        rows, groups = (1, 1) if shaped is None else shaped.shape[:2]
        return rows, groups, self.count // (rows * groups)


@dataclass(frozen=True)
class Places:
    """Predictions in their cells, and the class of what is expected to be left of each."""

    cells: Cells
    classes: NDArray[np.uint8]


def predict(terms: Terms) -> Array:
    """The numbers expected, flat."""
    work = np.dtype(FORMS[terms.kind].work)
    grid = terms.grid
    if terms.old is None:
        return np.zeros(terms.count, work)
    predicted = values(terms.kind, load(terms.kind, terms.old)).reshape(grid)
    if terms.old_zero is not None:
        predicted = predicted - terms.old_zero.astype(work)
    if terms.factor is not None:
        predicted = predicted * terms.factor.astype(work)
    if terms.change is not None and terms.lift is not None:
        predicted = predicted + (terms.change.reshape(grid) * terms.lift).astype(work)
    if terms.new_zero is not None:
        predicted = predicted + terms.new_zero.astype(work)
    return predicted.reshape(-1)


def place(terms: Terms) -> Places:
    found = cells(terms.kind, predict(terms))
    expected: Array = terms.row_classes[:, None]
    if terms.column_classes is not None:
        expected = expected + terms.column_classes
    if found.octave is not None:
        expected = expected - 2 * found.octave.reshape(terms.rows, terms.columns)
    wide = np.broadcast_to(tokens.classify(expected), (terms.rows, terms.columns))
    return Places(found, np.ascontiguousarray(wide).reshape(-1))


def left_over(terms: Terms, numbers: Ints, found: Cells) -> Ints:
    """Residuals toward the nearer neighbour, modulo the kind's width."""
    spare = np.int32(32 - FORMS[terms.kind].width)
    return ((numbers - found.ordered) * found.toward) << spare >> spare
