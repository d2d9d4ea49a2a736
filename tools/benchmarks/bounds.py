"""What a patch can hardly be smaller than: entropies of what is left to be told.

left   bytes of the residuals under the codec's own predictions, in its contexts, as if predictors, contexts and tables
       cost nothing: what is above that in our patch is the price of knowing them
told   bytes of what the predictors are told, counted alike: classes, factors of rows, low ranks
tables bytes of the context tables
law    floats alone: bytes if every weight's change were noise of the size that it has in its row, and nothing of it
       could be predicted: about log2(sigma / ulp) + 2.05 bits a weight
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ota.delta import adapters, codec, formats, matching
from ota.delta.files import File
from ota.delta.integers import FORMS, load, values
from ota.delta.tensors import Tensor

STEPS = 16  # of the table of entropies, to an octave
LOWEST, HIGHEST = -6, 30  # its octaves


def of(old: Path, new: Path, factors: Path | None) -> dict[str, float]:
    """Of a pair; nothing where there are no tensors, no `law` where some of them are no floats."""
    before, after = formats.read(old), formats.read(new)
    if not after.layout.tensors:
        return {}
    given = adapters.read(factors) if factors else None
    with File(old) as source, File(new) as target:
        pairs = matching.match(before, source, after, target, given)
        encoded = codec.encode(source, target, pairs)
        try:
            found = {"left": encoded.entropy(), "told": encoded.told(), "tables": float(len(encoded.tables))}
        finally:
            encoded.close()
        weights = [pair for pair in pairs if pair.new.kind in FORMS]
        if all(pair.new.kind.is_float for pair in weights):
            found["law"] = sum(_law(source, target, pair) for pair in weights)
    return found


def _law(old: File, new: File, pair: codec.Pair) -> float:
    after = _rows(new, pair.new)
    if pair.old is None or pair.old.kind != pair.new.kind or pair.old.count != pair.new.count:
        return float(pair.new.size)
    change = after - _rows(old, pair.old).reshape(after.shape)
    if not change.any():
        return 0.0
    form = FORMS[pair.new.kind]
    ulp = np.exp2(np.maximum(np.frexp(after)[1] - 1, form.emin) - form.mantissa)
    sigma = np.sqrt((change * change).mean(axis=1, keepdims=True))
    return float(_entropy(sigma / ulp).sum() / 8)


def _rows(source: File, tensor: Tensor) -> NDArray[np.float64]:
    numbers = values(tensor.kind, load(tensor.kind, source.read(tensor.offset, tensor.size))).astype(np.float64)
    numbers = np.where(np.isfinite(numbers), numbers, 0.0)
    return numbers.reshape(tensor.shape[0] if len(tensor.shape) > 1 and tensor.count else 1, -1)


def _entropy(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of a number of Gaussian noise, rounded to whole ones."""
    place = (np.log2(np.maximum(sigma, 1e-30)) - LOWEST) * STEPS
    return np.asarray(np.interp(place, np.arange(len(_table())), _table()))


@cache
def _table() -> NDArray[np.float64]:
    from math import erf

    found = []
    for step in range((HIGHEST - LOWEST) * STEPS):
        sigma = 2.0 ** (LOWEST + step / STEPS)
        if sigma > 64:
            found.append(float(np.log2(sigma) + 2.047))
            continue
        edges = (np.arange(-int(8 * sigma) - 2, int(8 * sigma) + 4) - 0.5) / (sigma * 2**0.5)
        shares = np.diff([erf(edge) / 2 for edge in edges])
        shares = shares[shares > 0]
        found.append(float(-(shares * np.log2(shares)).sum()))
    return np.array(found)
