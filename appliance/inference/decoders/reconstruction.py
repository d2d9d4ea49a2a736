"""How far a model's picture of its input is from the input: what it cannot give back is unusual.

    task = "reconstruction"

A result: `{"error": 0.31, "worst": 17, "explained": 0.88}`: the root of the mean squared residual in the input's units,
the place in the row (flattened) where it is largest, and the share of the row's energy that came back.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import ModelError
from appliance.inference.decoders.port import Plain, chosen, rounded
from appliance.inference.port import Array, Spec


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which tensors are compared."""

    input: Annotated[str, Meta(description="What was given; empty: the only input.")] = ""
    output: Annotated[str, Meta(description="What came back; empty: the only output.")] = ""


def create(settings: Settings, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> "Reconstruction":
    entered, left = chosen(inputs, settings.input, "input"), chosen(outputs, settings.output, "output")
    if entered.shape != left.shape:
        raise ModelError(
            f"decoder: '{left.name}' has another shape than '{entered.name}'",
            "A reconstruction has the shape of its input.",
        )
    return Reconstruction(entered.name, left.name)


class Reconstruction:
    def __init__(self, entered: str, left: str) -> None:
        self._entered, self._left = entered, left

    def decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        given = inputs[self._entered].astype(np.float64)
        given = given.reshape(len(given), -1)
        residual = outputs[self._left].astype(np.float64).reshape(given.shape) - given
        error = np.sqrt(np.mean(residual**2, axis=1))
        energy = np.sum(given**2, axis=1)
        lost = np.sum(residual**2, axis=1) / np.where(energy > 0.0, energy, np.nan)
        worst = np.argmax(np.abs(residual), axis=1)
        return [
            {"error": rounded(error[row]), "worst": int(worst[row]), "explained": rounded(1.0 - lost[row])}
            for row in range(len(given))
        ]
