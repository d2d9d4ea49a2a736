"""The likeliest classes of a row.

    task = "classifier"

    [decoder]
    labels = ["good", "scratched", "cracked"]
    activation = "softmax"

A result: `{"label": "good", "index": 0, "score": 0.93, "classes": [{"label": ..., "index": ..., "score": ...}, ...]}`,
the classes in falling order of their scores; label, index and score are None where no class reaches `at_least`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from appliance.errors import ModelError
from appliance.inference.decoders.port import Plain, as_float, chosen, label, of_rank, rounded
from appliance.inference.port import Array, Spec


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What the numbers of a row mean."""

    output: Annotated[str, Meta(description="The tensor [n, classes]; empty: the only one.")] = ""
    labels: Annotated[list[str], Meta(max_length=100_000, description="Names of the classes, in order.")] = []
    activation: Annotated[
        Literal["none", "softmax", "sigmoid"], Meta(description="What turns the numbers into scores of 0 to 1.")
    ] = "none"
    top: Annotated[int, Meta(ge=1, le=1000, description="Classes told of each row.")] = 5
    at_least: Annotated[float, Meta(description="A lower score is not told.")] = -np.inf


def create(settings: Settings, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> "Classifier":
    spec = of_rank(chosen(outputs, settings.output, "output"), "output", 2)
    classes = spec.shape[1]
    if settings.labels and classes not in (-1, len(settings.labels)):
        raise ModelError(
            f"decoder.labels: {len(settings.labels)} names for {classes} classes", "Name every class, in order."
        )
    return Classifier(settings, spec.name)


class Classifier:
    def __init__(self, settings: Settings, output: str) -> None:
        self._settings, self._output = settings, output

    def decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        scores = _activated(as_float(outputs[self._output]), self._settings.activation)
        return [self._result(row) for row in scores]

    def _result(self, row: NDArray[np.float64]) -> Plain:
        settings = self._settings
        best = np.argsort(-row, kind="stable")[: settings.top]
        classes = [
            {"label": label(settings.labels, int(index)), "index": int(index), "score": rounded(row[index])}
            for index in best
            if row[index] >= settings.at_least
        ]
        first: Plain = classes[0] if classes else {"label": None, "index": None, "score": None}
        return {**first, "classes": classes}


def _activated(scores: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-1e300))
        shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares
    if activation == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(scores, -500.0, 500.0))))
    return scores
