"""A decoder makes plain results of a model's answers: labels, objects, numbers with names. Pure.

One file a decoder; the file's name is the `task` in a card. It has one `Settings` struct, the card's [decoder] table,
and one `create(settings, inputs, outputs) -> Decoder`, which refuses settings that do not fit the model's tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.errors import ModelError
from appliance.inference.port import Array, Spec

Plain = dict[str, Any]  # text, numbers, truth values, lists and dicts of them


class Decoder(Protocol):
    def decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        """One result a row. `inputs` are the model's own, after preparation. ModelError where an answer has not the
        form that the settings promise."""


def chosen(specs: Sequence[Spec], name: str, setting: str) -> Spec:
    """The tensor of that name; without a name the only one there is. ModelError names the setting."""
    known = ", ".join(spec.name for spec in specs)
    if not name and len(specs) == 1:
        return specs[0]
    for spec in specs:
        if spec.name == name:
            return spec
    problem = f"decoder.{setting}: there is no '{name}'" if name else f"decoder.{setting} is missing"
    raise ModelError(problem, f"The card has: {known}.")


def of_rank(spec: Spec, setting: str, *ranks: int) -> Spec:
    """The spec itself. ModelError where its number of dimensions is none of `ranks`."""
    if len(spec.shape) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise ModelError(
            f"decoder.{setting}: '{spec.name}' has {len(spec.shape)} dimensions, not {wanted}",
            "Name another tensor, or another task.",
        )
    return spec


def as_float(array: Array) -> NDArray[np.float64]:
    """Plain results are computed and told in float64; what is no number is told as the lowest one."""
    values: NDArray[np.float64] = np.nan_to_num(array.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return values


def label(labels: Sequence[str], index: int) -> str:
    """A class's name, its number where it has none."""
    return labels[index] if 0 <= index < len(labels) else str(index)


def rounded(value: float) -> float | None:
    """Seven digits, which is what float32 holds; None for what JSON cannot carry."""
    return float(f"{value:.7g}") if np.isfinite(value) else None
