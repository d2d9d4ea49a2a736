"""A dense autoencoder in plain numpy: forward, backward and Adam, in float64 and in one fixed order.

The layers are `width -> hidden... -> bottleneck -> ...hidden -> width`, with a rectifier after each but the bottleneck
and the last one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """`rows @ weights + bias`, then the rectifier where `rectified`. weights [in, out], bias [out]."""

    weights: Array
    bias: Array
    rectified: bool


def initial(rng: np.random.Generator, sizes: Sequence[int]) -> list[Layer]:
    """Layers between `sizes`, symmetric around the smallest, which stays linear."""
    bottleneck = min(range(len(sizes)), key=sizes.__getitem__)
    last = len(sizes) - 1
    return [
        Layer(
            weights=rng.standard_normal((sizes[at - 1], sizes[at])) * np.sqrt(1.6 / sizes[at - 1]),
            bias=np.zeros(sizes[at]),
            rectified=at not in (bottleneck, last),
        )
        for at in range(1, len(sizes))
    ]


def reconstruct(layers: Sequence[Layer], rows: Array) -> Array:
    """[n, width] -> [n, width]."""
    return _forward(layers, rows)[-1]


def _forward(layers: Sequence[Layer], rows: Array) -> list[Array]:
    """What enters the first layer and what leaves each of them."""
    values = [rows]
    for layer in layers:
        out = values[-1] @ layer.weights + layer.bias
        values.append(np.maximum(out, 0.0) if layer.rectified else out)
    return values


def gradients(layers: Sequence[Layer], rows: Array) -> list[tuple[Array, Array]]:
    """Of the mean squared error of the reconstruction, by each layer's weights and bias."""
    values = _forward(layers, rows)
    slope = (values[-1] - rows) * (2.0 / rows.size)
    found = []
    for layer, entered, left in zip(layers[::-1], values[-2::-1], values[:0:-1], strict=True):
        if layer.rectified:
            slope = slope * (left > 0.0)
        found.append((entered.T @ slope, slope.sum(axis=0)))
        slope = slope @ layer.weights.T
    return found[::-1]


class Adam:
    """Adam (Kingma and Ba) over a list of layers; `step` returns the layers after it."""

    FIRST, SECOND, TINY = 0.9, 0.999, 1e-8

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._mean = [(np.zeros_like(layer.weights), np.zeros_like(layer.bias)) for layer in layers]
        self._square = [(np.zeros_like(layer.weights), np.zeros_like(layer.bias)) for layer in layers]
        self._fade_first = self._fade_second = 1.0

    def step(self, layers: Sequence[Layer], slopes: Sequence[tuple[Array, Array]], rate: float) -> list[Layer]:
        self._fade_first *= self.FIRST
        self._fade_second *= self.SECOND
        moved = []
        for layer, slope, mean, square in zip(layers, slopes, self._mean, self._square, strict=True):
            weights, bias = (
                value - rate * self._direction(*state)
                for value, state in zip((layer.weights, layer.bias), zip(slope, mean, square, strict=True), strict=True)
            )
            moved.append(Layer(weights, bias, layer.rectified))
        return moved

    def _direction(self, slope: Array, mean: Array, square: Array) -> Array:
        mean *= self.FIRST
        mean += (1.0 - self.FIRST) * slope
        square *= self.SECOND
        square += (1.0 - self.SECOND) * (slope * slope)
        spread = np.sqrt(square / (1.0 - self._fade_second)) + self.TINY
        direction: Array = mean / (1.0 - self._fade_first) / spread
        return direction


def train(
    rng: np.random.Generator, sizes: Sequence[int], rows: NDArray[np.float32], steps: int, batch: int
) -> Iterator[list[Layer]]:
    """The layers after each of `steps` steps on batches drawn from `rows` [n, width].

    The rate rises over the first 100 steps and falls to nothing at the last.
    """
    layers = initial(rng, sizes)
    adam = Adam(layers)
    for step in range(steps):
        drawn = rows[rng.integers(0, len(rows), batch)].astype(np.float64)
        layers = adam.step(layers, gradients(layers, drawn), _rate(step, steps))
        yield layers


def _rate(step: int, steps: int) -> float:
    left = 1.0 - step / steps
    return 3e-3 * min(1.0, (step + 1) / 100.0) * left * left
