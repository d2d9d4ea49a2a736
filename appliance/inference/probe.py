"""Asks a model on a device what the answer is known to: whether it agrees with the CPU, and how fast it is."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from appliance.errors import DeviceError, ModelError
from appliance.inference.policy import Figures
from appliance.inference.port import Array, Model, Spec, Tensor

# Accelerators compute in 16 bits: 10 bits of mantissa through a few layers stay well within this share of the answer's
# largest value; a wrong layout, a driver that returns zeros or a model compiled badly do not.
TOLERANCE = 0.05
FLIPPED = 0.25  # of whole numbers, which are classes or places: a near tie may fall either way
LENGTHS = (8, 64, 224, 1)  # tried in turn for what a model leaves free
BATCH = 256  # rows of a measurement of throughput
MEASURE_S, FEWEST, MOST = 0.05, 3, 200  # a measurement's time, and how many calls it makes in it

Answers = Mapping[str, Array]


def answers(model: Model, window: int) -> dict[str, Array]:
    """To the probe's inputs: windows one by one where `window` is not 0, else one inference of each input's shape.
    DeviceError where they are no numbers, ModelError where a window is not reconstructed."""
    found = _of_windows(model, window) if window else _of_any(model)
    for name, answer in found.items():
        if answer.dtype.kind == "f" and not np.isfinite(answer).all():
            raise DeviceError(f"{model.device} answers its probe with what is no number ({name})", "Update its driver.")
    return found


def compare(device: str, found: Answers, expected: Answers) -> float:
    """How far off, as a share of the expected answers' largest value. DeviceError where it is too far."""
    off = max((_off(found[name], answer) for name, answer in expected.items()), default=0.0)
    if off > TOLERANCE:
        raise DeviceError(
            f"{device} answers its probe wrongly (off by {off:.0%} of the CPU's answer)", "Update its driver."
        )
    return off


def measure(model: Model, window: int) -> Figures:
    """Of one row, and of many at once where the model maps rows to rows."""
    if window:
        one, many = np.zeros((1, window), np.float32), np.zeros((BATCH, window), np.float32)
        latency = median_s(lambda: model.infer(one))
        return Figures(latency, BATCH / median_s(lambda: model.infer(many)))
    inputs = inputs_for(model.inputs, _accepted(model))
    latency = median_s(lambda: model.run(inputs))
    return Figures(latency, 1.0 / latency)


def median_s(call: Callable[[], object], budget_s: float = MEASURE_S) -> float:
    """Seconds of one call, after one that does not count."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + budget_s
    while len(taken) < FEWEST or (len(taken) < MOST and time.perf_counter() < end):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def windows(length: int) -> Tensor:
    """[4, length]: a sine, a step, a slope and a beat, which no layer maps to nothing."""
    at = np.linspace(0.0, 1.0, length, dtype=np.float64)
    rows = [np.sin(12.0 * at), np.where(at < 0.5, -1.0, 1.0), 2.0 * at - 1.0, np.sin(40.0 * at) * at]
    return np.stack(rows).astype(np.float32)


def inputs_for(specs: Sequence[Spec], length: int) -> dict[str, Array]:
    """Waves for every input; the first free length is 1, `length` the others."""
    return {spec.name: _wave(spec, rank, length) for rank, spec in enumerate(specs)}


def _of_windows(model: Model, window: int) -> dict[str, Array]:
    asked = windows(window)
    given = np.concatenate([model.infer(row[None]) for row in asked])
    if given.shape != asked.shape:
        raise ModelError(
            f"the model gives {given.shape[1:]} for a window of {window}", "A reconstruction has its input's shape."
        )
    return {"windows": given}


def _of_any(model: Model) -> dict[str, Array]:
    return model.run(inputs_for(model.inputs, _accepted(model)))


def _accepted(model: Model) -> int:
    """A length that the model takes where it leaves lengths free. DeviceError where it takes none of those tried."""
    if not any(-1 in spec.shape[1:] for spec in model.inputs):
        return 1
    for length in LENGTHS[:-1]:
        try:
            model.run(inputs_for(model.inputs, length))
            return length
        except DeviceError:
            continue
    return LENGTHS[-1]


def _wave(spec: Spec, rank: int, length: int) -> Array:
    shape = [spec.shape[0] if spec.shape[0] > 0 else 1, *(size if size > 0 else length for size in spec.shape[1:])]
    wave: Array = np.sin(np.arange(int(np.prod(shape))) * 0.7 + rank).reshape(shape)
    if spec.dtype == "bool":
        return np.asarray(wave > 0)
    if np.dtype(spec.dtype).kind in "iu":
        wave = wave * 2 + 2  # 0 to 4: places in any dictionary
    return wave.astype(spec.dtype)


def _off(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.size:
        return 0.0
    if expected.dtype.kind != "f" and expected.dtype.itemsize != 1:
        return 0.0 if float(np.mean(found != expected)) <= FLIPPED else 1.0
    wide = expected.astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - wide))) / max(float(np.max(np.abs(wide))), 1e-6)
