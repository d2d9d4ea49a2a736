"""Changes of low rank: found by the encoder, exact in the decoder.

U [rows, rank] and V [rank, columns] are integers, each component of V moved up by a shift of its own, so their product
in float64 is exact in whatever order it is summed.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_RANK = 64
MAX_FACTOR = (1 << 15) - 1
_TURNS = 2
_ROUND_LEFT, _ROUND = 0.42, 0.4  # added before a side is cut: more zeros for little loss
MAX_SHIFT = 16  # 15 + 15 + 16 bits and 64 components: below 2^53
_STEP = 4.2  # of a factor, in residuals over the length of its partner: there what is saved and what is paid are even


@dataclass(frozen=True)
class Factors:
    """Integers; the change is ldexp(U @ (V << shifts), exponent)."""

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    shifts: NDArray[np.int32]
    exponent: int


def shifted(right: NDArray[np.int32], shifts: NDArray[np.int32]) -> NDArray[np.float64]:
    """V as the decoder multiplies with it."""
    return (right.astype(np.int64) << shifts.astype(np.int64)[:, None]).astype(np.float64)


def product(left: NDArray[np.int32], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """U V as integers."""
    return left.astype(np.float64) @ right


@dataclass(frozen=True)
class Components:
    """What stands out of a change, strongest first: left [rows, rank] with the strength in it, right of length one."""

    left: Array
    right: Array

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])

    def head(self, rank: int) -> "Components":
        return Components(self.left[:, :rank], self.right[:rank])

    def product(self) -> Array:
        return self.left @ self.right


def find(change: Array, limit: int, seed: int = 1, certain: bool = False) -> Components:
    """The components of `change` [rows, columns] that are stronger than noise of the size of the rest can be.

    All of them where it is `certain` that there are so many.
    """
    rows, columns = change.shape
    left, strength, right = _decompose(change, min(limit, rows, columns), seed)
    total = float((change * change).sum())
    rank = len(strength)
    if certain:
        return Components(left * strength, right)
    for _ in range(8):
        rest = max(total - float((strength[:rank] ** 2).sum()), 0.0) / max((rows - rank) * (columns - rank), 1)
        fewer = int((strength > rest**0.5 * (rows**0.5 + columns**0.5)).sum())
        if fewer == rank:
            break
        rank = fewer
    return Components(left[:, :rank] * strength[:rank], right[:rank])


def _decompose(change: Array, rank: int, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    basis = change @ rng.standard_normal((change.shape[1], min(rank + 8, *change.shape))).astype(change.dtype)
    for _ in range(3):
        basis = np.linalg.qr(change @ (change.T @ np.linalg.qr(basis)[0]))[0]
    left, strength, right = np.linalg.svd(basis.T @ change, full_matrices=False)
    return (basis @ left)[:, :rank], strength[:rank], right[:rank]


def quantise(left: Array, right: Array, noise: float) -> Factors:
    """Integers as coarse as residuals of the size `noise` allow; at least one component, `right` of length one."""
    noise = max(noise, float(np.abs(left).max()) * 2.0**-24, 1e-30)
    strength = np.maximum(np.linalg.norm(left, axis=0), 1e-30)
    for_left = np.floor(np.log2(_STEP * noise) + 0.5)
    for_right = np.floor(np.log2(_STEP * noise / strength) + 0.5)
    for_left = np.maximum(for_left, np.ceil(np.log2(np.abs(left).max() / MAX_FACTOR)))
    for_right = np.maximum(for_right, np.ceil(np.log2(np.abs(right).max(axis=1) / MAX_FACTOR)))
    base = float(for_right.min())
    for_right = np.minimum(for_right, base + MAX_SHIFT)
    steps = np.exp2(for_right)[:, None]
    return Factors(
        np.rint(left / 2.0**for_left).astype(np.int32),
        np.clip(np.rint(right / steps), -MAX_FACTOR, MAX_FACTOR).astype(np.int32),
        (for_right - base).astype(np.int32),
        int(for_left + base),
    )


def on_grid(left: Array, right: Array, bits: int) -> Factors:
    """Integers of at most `bits` bits, by steps that are powers of two: floats of few bits stay nearly as they are."""
    for_left = int(np.ceil(np.log2(np.abs(left).max()))) - bits
    tops = np.maximum(np.abs(right).max(axis=1), np.abs(right).max() * 2.0**-MAX_SHIFT)
    for_right = np.ceil(np.log2(tops)).astype(np.int32) - bits
    for_right = np.minimum(for_right, for_right.min() + MAX_SHIFT)
    most = (1 << bits) - 1
    return Factors(
        np.clip(np.rint(np.ldexp(left, -for_left)), -most, most).astype(np.int32),
        np.clip(np.rint(np.ldexp(right, -for_right[:, None])), -most, most).astype(np.int32),
        (for_right - for_right.min()).astype(np.int32),
        int(for_left + for_right.min()),
    )


def settle(factors: Factors, change: Array) -> Factors:
    """Each side again by least squares against the rounded other one, which makes up for what rounding took away."""
    for _ in range(_TURNS):
        factors = _settle_left(factors, change)
        factors = _settle_right(factors, change)
    return _settle_left(factors, change)


def _settle_left(factors: Factors, change: Array) -> Factors:
    right = shifted(factors.right, factors.shifts) * 2.0**factors.exponent
    return replace(factors, left=_rounded(np.linalg.solve(_gram(right), right @ change.T).T, _ROUND_LEFT))


def _settle_right(factors: Factors, change: Array) -> Factors:
    left = factors.left.astype(np.float64)
    steps = np.ldexp(1.0, factors.shifts + factors.exponent)[:, None]
    return replace(factors, right=_rounded(np.linalg.solve(_gram(left.T), left.T @ change) / steps, _ROUND))


def _gram(rows: Array) -> Array:
    gram: Array = rows @ rows.T
    return gram + np.eye(len(gram)) * 1e-9 * max(float(np.trace(gram)), 1e-300)


def _rounded(numbers: Array, up: float) -> NDArray[np.int32]:
    numbers = np.where(np.isfinite(numbers), numbers, 0.0)  # a side that was rounded to nothing leaves no number
    found = np.copysign(np.floor(np.minimum(np.abs(numbers), MAX_FACTOR - 1) + up), numbers)
    return np.asarray(found, np.int32)
