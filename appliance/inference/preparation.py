"""From what callers hand over to what a model takes: number format, scale and order of axes, as its card says. Pure.

    (given - mean) / deviation, by channel, computed in float32; then the axes in the model's order, in its dtype

An input without `given` in its card is handed over as it is.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from appliance.errors import ModelError
from appliance.inference import tensors
from appliance.inference.models import Given, Port
from appliance.inference.port import Array, Spec, Tensor


class _Step(NamedTuple):
    """What is done with one input. `mean` and `factor` broadcast against what is given."""

    mean: Tensor
    factor: Tensor
    axes: tuple[int, ...]  # of what is given, in the model's order
    dtype: str


class Preparation:
    """Of one model's inputs. `specs` is what callers hand over. ModelError where the card contradicts itself."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self.specs = tuple(_spec(port) for port in ports)
        self._steps = {port.name: _step(port, port.given) for port in ports if port.given is not None}

    def prepare(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """ModelError names the tensor, the expected dtype and shape."""
        given = tensors.ordered(self.specs, inputs)
        return {
            spec.name: _prepared(self._steps[spec.name], tensor) if spec.name in self._steps else tensor
            for spec, tensor in zip(self.specs, given, strict=True)
        }


def _prepared(step: _Step, given: Array) -> Array:
    values = (given.astype(np.float32) - step.mean) * step.factor
    return np.ascontiguousarray(values.transpose(step.axes).astype(step.dtype, copy=False))


def _spec(port: Port) -> Spec:
    if port.given is None:
        return Spec(port.name, port.dtype, tuple(port.shape))
    shape = [0] * len(port.shape)
    for place, axis in enumerate(_axes(port, port.given)):
        shape[axis] = port.shape[place]
    return Spec(port.name, port.given.dtype, tuple(shape))


def _step(port: Port, given: Given) -> _Step:
    if not port.dtype.startswith("float"):
        raise _wrong(port, "dtype", f"is {port.dtype}", "Only an input of floating point numbers can be prepared.")
    if any(value == 0 for value in given.deviation):
        raise _wrong(port, "given.deviation", "has a zero", "Leave it out where nothing is divided.")
    mean = _by_channel(port, given, "mean", given.mean or [0.0])
    deviation = _by_channel(port, given, "deviation", given.deviation or [1.0])
    return _Step(mean, np.float32(1.0) / deviation, _axes(port, given), port.dtype)


def _axes(port: Port, given: Given) -> tuple[int, ...]:
    """For each axis of the model the axis of what is given."""
    rank = len(port.shape)
    if not given.layout:
        return tuple(range(rank))
    for layout, setting in ((port.layout, "layout"), (given.layout, "given.layout")):
        if len(layout) != rank or len(set(layout)) != rank:
            raise _wrong(port, setting, f"'{layout}' does not name {rank} axes", "Write one letter an axis: NCHW.")
    if set(port.layout) != set(given.layout):
        raise _wrong(port, "given.layout", f"'{given.layout}' is no order of '{port.layout}'", "Use the same letters.")
    return tuple(given.layout.index(letter) for letter in port.layout)


def _by_channel(port: Port, given: Given, setting: str, values: list[float]) -> Tensor:
    """One number, or one a channel along the axis C of what is given."""
    numbers = np.array(values, np.float32)
    if len(numbers) == 1:
        return numbers
    layout = given.layout or port.layout
    channels = port.shape[port.layout.index("C")] if "C" in port.layout and len(port.layout) == len(port.shape) else 0
    if channels != len(numbers):
        raise _wrong(
            port, f"given.{setting}", f"has {len(numbers)} numbers for {channels} channels", "One, or one a channel."
        )
    shape = [len(numbers) if letter == "C" else 1 for letter in layout]
    return numbers.reshape(shape)


def _wrong(port: Port, setting: str, problem: str, remedy: str) -> ModelError:
    return ModelError(f"inputs '{port.name}': {setting} {problem}", remedy)
