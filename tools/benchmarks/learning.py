"""Reverse-mode differentiation in numpy, as much of it as two small networks need, and what moves their weights.

    loss = cross_entropy(matmul(Value(rows), weights), labels)
    loss.backward()
    optimiser.step(parameters)

Everything is float32. Images are [rows, channels, height, width], text is [rows, places].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float32]
Slopes = Sequence[Array | None]  # one a parent


class Value:
    """An array, and how its slope becomes that of its parents."""

    def __init__(
        self, data: Array, parents: Sequence["Value"] = (), back: Callable[[Array], Slopes] | None = None
    ) -> None:
        self.data, self.parents, self._back = data, parents, back
        self.slope: Array | None = None

    def backward(self) -> None:
        """Adds to the slope of everything this came from; this must be one number."""
        self.slope = np.ones_like(self.data)
        for value in reversed(_ordered(self)):
            if value._back is None or value.slope is None:
                continue
            for parent, slope in zip(value.parents, value._back(value.slope), strict=True):
                if slope is not None:
                    parent.slope = slope if parent.slope is None else parent.slope + slope
            value.slope = None  # only leaves keep theirs


def _ordered(last: Value) -> list[Value]:
    found: list[Value] = []
    seen: set[int] = set()
    waiting: list[tuple[Value, bool]] = [(last, False)]
    while waiting:
        value, done = waiting.pop()
        if done:
            found.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            waiting.append((value, True))
            waiting += [(parent, False) for parent in value.parents]
    return found


def _summed(slope: Array, shape: tuple[int, ...]) -> Array:
    """To the shape before broadcasting."""
    slope = slope.sum(axis=tuple(range(slope.ndim - len(shape))))
    axes = tuple(axis for axis, length in enumerate(shape) if length == 1 and slope.shape[axis] != 1)
    return slope.sum(axis=axes, keepdims=True) if axes else slope


def add(a: Value, b: Value) -> Value:
    return Value(a.data + b.data, (a, b), lambda g: (_summed(g, a.data.shape), _summed(g, b.data.shape)))


def scale(a: Value, factor: float) -> Value:
    return Value(a.data * np.float32(factor), (a,), lambda g: (g * np.float32(factor),))


def matmul(a: Value, b: Value) -> Value:
    """[..., n, k] by [..., k, m]."""

    def back(g: Array) -> Slopes:
        left = g @ np.swapaxes(b.data, -1, -2)
        return left, _summed(np.swapaxes(a.data, -1, -2) @ g, b.data.shape)

    return Value(a.data @ b.data, (a, b), back)


def linear(a: Value, weights: Value) -> Value:
    """[..., k] by [m, k], as checkpoints keep their weights."""
    rows = a.data.reshape(-1, a.data.shape[-1])  # one product instead of many small ones

    def back(g: Array) -> Slopes:
        flat = g.reshape(-1, g.shape[-1])
        return (flat @ weights.data).reshape(a.data.shape), flat.T @ rows

    return Value((rows @ weights.data.T).reshape(*a.data.shape[:-1], -1), (a, weights), back)


def relu(a: Value) -> Value:
    kept = np.maximum(a.data, 0)
    return Value(kept, (a,), lambda g: (g * (kept > 0),))


def reshape(a: Value, *shape: int) -> Value:
    return Value(a.data.reshape(shape), (a,), lambda g: (g.reshape(a.data.shape),))


def swap(a: Value, first: int, second: int) -> Value:
    return Value(np.swapaxes(a.data, first, second), (a,), lambda g: (np.swapaxes(g, first, second),))


def take(table: Value, places: NDArray[np.int64]) -> Value:
    """Rows of a table [n, width], by their numbers."""

    def back(g: Array) -> Slopes:
        slope = np.zeros_like(table.data)
        np.add.at(slope, places, g)
        return (slope,)

    return Value(table.data[places], (table,), back)


def normalised(a: Value, gain: Value, bias: Value, tiny: float = 1e-5) -> Value:
    """Each row to mean 0 and deviation 1, then times `gain` plus `bias`."""
    centred = a.data - a.data.mean(-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(tiny))
    unit = centred / deviation

    def back(g: Array) -> Slopes:
        inner = g * gain.data
        slope = (inner - inner.mean(-1, keepdims=True) - unit * (inner * unit).mean(-1, keepdims=True)) / deviation
        return slope, _summed(g * unit, gain.data.shape), _summed(g, bias.data.shape)

    return Value(unit * gain.data + bias.data, (a, gain, bias), back)


def batch_normalised(a: Value, gain: Value, bias: Value, mean: Array, variance: Array, live: bool) -> Value:
    """Each channel of images; `live` takes what the batch has and moves `mean` and `variance` a tenth towards it."""
    axes, shape = (0, 2, 3), (1, -1, 1, 1)
    if live:
        batch_mean, batch_variance = a.data.mean(axes), a.data.var(axes)
        mean += np.float32(0.1) * (batch_mean - mean)
        variance += np.float32(0.1) * (batch_variance - variance)
    else:
        batch_mean, batch_variance = mean, variance
    deviation = np.sqrt(batch_variance + np.float32(1e-5)).reshape(shape)
    unit = (a.data - batch_mean.reshape(shape)) / deviation

    def back(g: Array) -> Slopes:
        inner = g * gain.data.reshape(shape)
        slope = inner
        if live:
            slope = inner - inner.mean(axes, keepdims=True) - unit * (inner * unit).mean(axes, keepdims=True)
        return slope / deviation, (g * unit).sum(axes), g.sum(axes)

    return Value(unit * gain.data.reshape(shape) + bias.data.reshape(shape), (a, gain, bias), back)


def convolution(a: Value, kernel: Value, stride: int) -> Value:
    """Kernels [out, in, 3, 3]; padded by one."""
    rows, channels, height, width = a.data.shape
    padded = np.pad(a.data, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    tall, wide = windows.shape[2:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(rows * tall * wide, channels * 9)
    flat = kernel.data.reshape(len(kernel.data), -1)

    def back(g: Array) -> Slopes:
        given = g.transpose(0, 2, 3, 1).reshape(-1, len(flat))
        spread = (given @ flat).reshape(rows, tall, wide, channels, 3, 3)
        slope = np.zeros_like(padded)
        for y in range(3):
            for x in range(3):
                part = spread[..., y, x].transpose(0, 3, 1, 2)
                slope[:, :, y : y + stride * tall : stride, x : x + stride * wide : stride] += part
        return slope[:, :, 1 : height + 1, 1 : width + 1], (given.T @ columns).reshape(kernel.data.shape)

    out = (columns @ flat.T).reshape(rows, tall, wide, -1).transpose(0, 3, 1, 2)
    return Value(np.ascontiguousarray(out), (a, kernel), back)


def pooled(a: Value) -> Value:
    """The mean of each channel."""
    area = np.float32(a.data.shape[2] * a.data.shape[3])
    shape = a.data.shape
    return Value(a.data.mean((2, 3)), (a,), lambda g: (np.broadcast_to(g[:, :, None, None] / area, shape),))


def attention(queries: Value, keys: Value, values: Value) -> Value:
    """[rows, heads, places, width]: what each place takes from those up to itself."""
    places, width = queries.data.shape[-2:]
    factor = np.float32(width**-0.5)
    scores = queries.data @ np.swapaxes(keys.data, -1, -2) * factor
    scores = np.where(np.tri(places, dtype=bool), scores, np.float32(-1e30))
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)

    def back(g: Array) -> Slopes:
        slope = g @ np.swapaxes(values.data, -1, -2)
        slope = share * (slope - (slope * share).sum(-1, keepdims=True)) * factor
        return slope @ keys.data, np.swapaxes(slope, -1, -2) @ queries.data, np.swapaxes(share, -1, -2) @ g

    return Value(share @ values.data, (queries, keys, values), back)


def cross_entropy(logits: Value, labels: NDArray[np.int64]) -> Value:
    """Logits [..., classes], labels [...]; their mean, one number."""
    flat = logits.data.reshape(-1, logits.data.shape[-1])
    wanted = labels.ravel()
    share = np.exp(flat - flat.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    rows = np.arange(len(flat))
    loss = -np.log(np.maximum(share[rows, wanted], 1e-12)).mean()

    def back(g: Array) -> Slopes:
        slope = share.copy()
        slope[rows, wanted] -= 1
        return ((slope * (g / np.float32(len(flat)))).reshape(logits.data.shape),)

    return Value(np.asarray(loss, np.float32), (logits,), back)


# What moves weights


class Optimiser(Protocol):
    def step(self, parameters: Mapping[str, Value], pace: float = 1.0) -> None:
        """Moves every parameter that has a slope by `pace` of the rate, and takes the slope away."""


class Momentum:
    """Gradient descent with momentum."""

    def __init__(self, rate: float) -> None:
        self._rate, self._speed = np.float32(rate), dict[str, Array]()

    def step(self, parameters: Mapping[str, Value], pace: float = 1.0) -> None:
        rate = self._rate * np.float32(pace)
        for name, value in parameters.items():
            if value.slope is not None:
                speed = self._speed.setdefault(name, np.zeros_like(value.data))
                speed *= np.float32(0.9)
                speed += value.slope
                value.data = value.data - rate * speed
                value.slope = None


class Adam:
    def __init__(self, rate: float) -> None:
        self._rate, self._count = rate, 0
        self._mean, self._square = dict[str, Array](), dict[str, Array]()

    def step(self, parameters: Mapping[str, Value], pace: float = 1.0) -> None:
        self._count += 1
        factor = np.float32(pace * self._rate * (1 - 0.999**self._count) ** 0.5 / (1 - 0.9**self._count))
        for name, value in parameters.items():
            if value.slope is None:
                continue
            mean = self._mean.setdefault(name, np.zeros_like(value.data))
            square = self._square.setdefault(name, np.zeros_like(value.data))
            mean += np.float32(0.1) * (value.slope - mean)
            square += np.float32(0.001) * (value.slope * value.slope - square)
            value.data = value.data - (factor * mean / (np.sqrt(square) + np.float32(1e-8))).astype(np.float32)
            value.slope = None
