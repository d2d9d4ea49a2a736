"""The few numbers that say how a tensor is predicted, bounded, and the blocks in which it is coded."""

from dataclasses import astuple, dataclass, fields
from enum import IntEnum

from ota.delta import lowrank, tokens
from ota.delta.errors import PatchError
from ota.delta.integers import FORMS
from ota.delta.tensors import MAX_BYTES, Kind

CHUNK = 1 << 16  # elements
MAX_TAPS = 16  # one way
MAX_COLUMNS = 1 << 20  # that may have classes of their own, and times rank
KINDS = tuple(FORMS)
SCALES = (Kind.F16, Kind.F32, Kind.BF16)
WEIGHTS = 4  # of the kinds that follow, those that may be weights
ZEROS = (Kind.I8, Kind.U8, Kind.I4, Kind.U4, Kind.F16, Kind.F32, Kind.BF16)


class Mode(IntEnum):
    NONE = 0  # no old tensor: integers against zero, floats by their own exponents
    COPY = 1
    SCALE = 2  # by the ratio of the scales; floats, which are then scales themselves, by its inverse
    FIT = 3  # by a factor for each row
    BOTH = 4  # by the one and the other
    PEAK = 5  # a scale, by what becomes of the largest weight of its group: `groups` weights each, of kind `zero_kind`


@dataclass(frozen=True)
class Plan:
    """Offsets are told less the offset of the tensor itself. Classes are in half octaves.

    `center` of the residual; `row_spread` and `column_spread` the classes of the deviations from it, -1 where there are
    none; factors are 1 + k / 2^fit_shift with k of class `fit_spread`; `groups` scales a row (0: one for the tensor).
    Columns are inputs of `high` x `wide` taps: those of one input lean on each other. A low rank that is `kept` is that
    of the scales before, which told it first.
    """

    kind: int
    mode: int
    rows: int
    columns: int
    old: int = 0
    center: int = 0
    row_spread: int = -1
    column_spread: int = -1
    rank: int = 0
    exponent: int = 0
    fit_shift: int = 0
    fit_spread: int = 0
    groups: int = 0
    scale_kind: int = 0
    old_scale: int = 0
    new_scale: int = 0
    zero_kind: int = -1
    old_zero: int = 0
    new_zero: int = 0
    high: int = 1
    wide: int = 1
    kept: int = 0

    def params(self) -> tuple[int, ...]:
        """Trailing defaults are left away."""
        found = list(astuple(self))
        while len(found) > 4 and found[-1] == fields(self)[len(found) - 1].default:
            found.pop()
        return tuple(found)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def form(self) -> Kind:
        return KINDS[self.kind]

    @property
    def size(self) -> int:
        return self.count * FORMS[self.form].width // 8

    @property
    def is_float(self) -> bool:
        return FORMS[self.form].mantissa > 0

    @property
    def is_fresh(self) -> bool:
        return self.mode == Mode.NONE and self.is_float

    @property
    def is_scaled(self) -> bool:
        return self.mode in (Mode.SCALE, Mode.BOTH)

    @property
    def is_peak(self) -> bool:
        return self.mode == Mode.PEAK

    @property
    def across(self) -> int:
        """Columns of the low rank."""
        return self.columns * self.groups if self.is_peak else self.columns

    @property
    def is_fitted(self) -> bool:
        return self.mode in (Mode.FIT, Mode.BOTH)


def parse(params: tuple[int, ...]) -> Plan:
    """PatchError for a plan that is out of bounds."""
    if not 4 <= len(params) <= len(fields(Plan)):
        raise PatchError("a plan of a wrong length")
    plan = Plan(*params)
    bounds: list[tuple[int, int, int]] = [
        (plan.kind, 0, len(KINDS) - 1),
        (plan.mode, 0, len(Mode) - 1),
        (plan.rows, 1, MAX_BYTES),
        (plan.columns, 1, MAX_BYTES),
        (plan.old, -MAX_BYTES, MAX_BYTES),
        (plan.center, -4096, 4096),
        (plan.row_spread, -1, tokens.CLASSES - 1),
        (plan.column_spread, -1, tokens.CLASSES - 1),
        (plan.rank, 0, lowrank.MAX_RANK),
        (plan.exponent, -300, 300),
        (plan.fit_shift, 0, 30),
        (plan.fit_spread, 0, tokens.CLASSES - 1),
        (plan.groups, 0, MAX_COLUMNS if plan.is_peak else plan.columns),
        (plan.scale_kind, 0, len(SCALES) - 1),
        (plan.zero_kind, -1, len(ZEROS) - 1),
        (plan.high, 1, MAX_TAPS),
        (plan.wide, 1, MAX_TAPS),
        (plan.kept, 0, 1),
    ]
    bounds += [(offset, -MAX_BYTES, MAX_BYTES) for offset in (plan.old_scale, plan.new_scale)]
    bounds += [(offset, -MAX_BYTES, MAX_BYTES) for offset in (plan.old_zero, plan.new_zero)]
    if any(not low <= number <= high for number, low, high in bounds) or plan.count > MAX_BYTES:
        raise PatchError("a plan out of bounds")
    _check_shape(plan)
    return plan


def _check_shape(plan: Plan) -> None:
    wide = plan.column_spread >= 0 or plan.rank > 0
    if wide and plan.across * max(plan.rank, 1) > MAX_COLUMNS:
        raise PatchError("a plan with too many columns")
    if FORMS[plan.form].width == 4 and (plan.columns % 2 or (plan.columns > CHUNK and CHUNK % 2)):
        raise PatchError("a plan that splits a byte")
    if plan.is_peak or plan.kept:
        _check_told_twice(plan)
    if plan.across % (plan.high * plan.wide):
        raise PatchError("a plan whose taps do not fit")
    if plan.groups and plan.columns % plan.groups and not plan.is_peak:
        raise PatchError("a plan whose groups do not fit")
    if plan.is_scaled and ((plan.is_float and plan.rank) or (plan.groups > 1 and plan.columns > CHUNK)):
        raise PatchError("scales where there can be none")
    if plan.is_fresh and plan.rank:
        raise PatchError("low rank without an old tensor")


def _check_told_twice(plan: Plan) -> None:
    """A low rank that scales tell and weights use, which is in memory between the two."""
    if not plan.rank or plan.rows * plan.rank > MAX_COLUMNS or (plan.is_peak and plan.kept):
        raise PatchError("a low rank that cannot be kept")
    if plan.is_peak and not (plan.is_float and plan.groups and 0 <= plan.zero_kind < WEIGHTS):
        raise PatchError("scales of no weights")
    if plan.is_peak and plan.groups * FORMS[ZEROS[plan.zero_kind]].width % 8:
        raise PatchError("scales of weights that split a byte")
    if plan.kept and not plan.is_scaled:
        raise PatchError("a low rank that is kept for nothing")


@dataclass(frozen=True)
class Block:
    """Rows and columns that are coded at once."""

    row: int
    rows: int
    column: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns


class Blocks:
    """The blocks of a tensor, in the order of its bytes: whole rows, or pieces of one where rows are long."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pieces = -(-plan.columns // CHUNK)
        self._height = max(1, CHUNK // plan.columns)

    def __len__(self) -> int:
        return self._pieces * self._plan.rows if self._pieces > 1 else -(-self._plan.rows // self._height)

    def __getitem__(self, number: int) -> Block:
        plan = self._plan
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self._pieces > 1:
            row, piece = divmod(number, self._pieces)
            return Block(row, 1, piece * CHUNK, min(CHUNK, plan.columns - piece * CHUNK))
        row = number * self._height
        return Block(row, min(self._height, plan.rows - row), 0, plan.columns)

    def start(self, number: int) -> int:
        """Bytes of the tensor before block `number`."""
        block = self[number]
        return (block.row * self._plan.columns + block.column) * FORMS[self._plan.form].width // 8

    def size(self, number: int) -> int:
        return self[number].count * FORMS[self._plan.form].width // 8
