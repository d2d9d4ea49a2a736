"""A row as a point in a space where likeness is nearness.

    task = "embedding"

    [decoder]
    normalise = true

A result: `{"embedding": [0.1, ...], "length": 7.3}`; normalised, the scalar product of two embeddings is their
likeness.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from appliance.inference.decoders.port import Plain, chosen, rounded
from appliance.inference.port import Array, Spec


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the numbers are, and their length."""

    output: Annotated[str, Meta(description="The tensor [n, ...]; empty: the only one.")] = ""
    normalise: Annotated[bool, Meta(description="Scale each embedding to length 1.")] = True


def create(settings: Settings, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> "Embedding":
    return Embedding(settings, chosen(outputs, settings.output, "output").name)


class Embedding:
    def __init__(self, settings: Settings, output: str) -> None:
        self._normalise, self._output = settings.normalise, output

    def decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        rows = outputs[self._output].astype(np.float64)
        rows = rows.reshape(len(rows), -1)
        lengths = np.linalg.norm(rows, axis=1)
        if self._normalise:
            rows = rows / np.where(lengths > 0.0, lengths, 1.0)[:, None]
        return [
            {"embedding": [rounded(value) for value in row], "length": rounded(length)}
            for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)
        ]
