"""What comes next in a time series.

    task = "forecast"

    [decoder]
    step_s = 60.0
    channels = ["temperature", "pressure"]
    quantiles = [0.1, 0.5, 0.9]

The answer is [n, steps], [n, steps, channels] or, with quantiles, one axis more that is as long as they are. A result:
`{"step_s": 60.0, "values": {"temperature": [...]}}`; with quantiles `{"values": {"temperature": {"0.1": [...], ...}}}`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from appliance.errors import ModelError
from appliance.inference.decoders.port import Plain, chosen, of_rank, rounded
from appliance.inference.port import Array, Spec


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the axes are."""

    output: Annotated[str, Meta(description="The tensor; empty: the only one.")] = ""
    step_s: Annotated[float, Meta(gt=0, description="Time from one step to the next.")] = 1.0
    channels: Annotated[list[str], Meta(max_length=10_000, description="Names of the channels, in order.")] = []
    quantiles: Annotated[
        list[Annotated[float, Meta(gt=0, lt=1)]], Meta(max_length=100, description="What the last axis is.")
    ] = []


def create(settings: Settings, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> "Forecast":
    more = 1 if settings.quantiles else 0
    spec = of_rank(chosen(outputs, settings.output, "output"), "output", 2 + more, 3 + more)
    shape = spec.shape
    if settings.quantiles:
        _as_many(len(settings.quantiles), shape[-1], "quantiles")
        shape = shape[:-1]
    if settings.channels:
        _as_many(len(settings.channels), shape[2] if len(shape) == 3 else 1, "channels")
    return Forecast(settings, spec.name)


class Forecast:
    def __init__(self, settings: Settings, output: str) -> None:
        self._settings, self._output = settings, output

    def decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        answer = outputs[self._output].astype(np.float64)
        if not self._settings.quantiles:
            answer = answer[..., None]
        if answer.ndim == 3:
            answer = answer[:, :, None, :]  # one channel
        return [{"step_s": self._settings.step_s, "values": self._values(row)} for row in answer]

    def _values(self, row: NDArray[np.float64]) -> dict[str, Any]:
        """[steps, channels, quantiles or 1] by names."""
        return {self._channel(place): self._series(row[:, place]) for place in range(row.shape[1])}

    def _channel(self, place: int) -> str:
        return self._settings.channels[place] if self._settings.channels else str(place)

    def _series(self, steps: NDArray[np.float64]) -> Any:
        series = [[rounded(value) for value in column] for column in steps.T.tolist()]
        if not self._settings.quantiles:
            return series[0]
        return {f"{share:g}": column for share, column in zip(self._settings.quantiles, series, strict=True)}


def _as_many(names: int, length: int, setting: str) -> None:
    if length not in (-1, names):
        raise ModelError(f"decoder.{setting}: {names} for an axis of {length}", "Name every one, in order.")
