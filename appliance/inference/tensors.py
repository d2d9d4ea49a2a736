"""Tensors against what a model says it takes: the same words of refusal from every backend. Pure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from appliance.errors import ModelError
from appliance.inference.port import Array, Spec


def ordered(specs: Sequence[Spec], inputs: Mapping[str, Array]) -> list[Array]:
    """The tensors in the order of the specs, contiguous. ModelError names the tensor and what is wrong with it."""
    known = [spec.name for spec in specs]
    for name in inputs:
        if name not in known:
            raise ModelError(f"the model has no input '{name}'", f"Its inputs are: {', '.join(known)}.")
    for spec in specs:
        if spec.name not in inputs:
            raise ModelError(f"the model's input '{spec.name}' is missing", f"Its inputs are: {', '.join(known)}.")
    return [np.ascontiguousarray(_fitting(spec, inputs[spec.name])) for spec in specs]


def row_of(inputs: Sequence[Spec], outputs: Sequence[Spec]) -> tuple[int, ...] | None:
    """The shape of one row, of a model that maps rows to rows: one input, one output, the first length free or fixed
    and the others known. None of any other."""
    if len(inputs) != 1 or len(outputs) != 1 or not inputs[0].shape or not outputs[0].shape:
        return None
    row = inputs[0].shape[1:]
    rows_kept = outputs[0].shape[0] in (-1, inputs[0].shape[0])
    return row if rows_kept and -1 not in row else None


def rows_fit(row: tuple[int, ...] | None, batch: Array) -> None:
    """ModelError where `batch` is not [n, *row]."""
    if row is None:
        raise ModelError("the model does not map rows to rows", "Call it with its inputs by name.")
    if batch.shape[1:] != row or not batch.ndim:
        raise ModelError(f"the model takes rows of shape {row}, not {batch.shape[1:]}", "Feed it what its card says.")


def misfit(path: Path, shapes: Sequence[tuple[int, ...]], why: str) -> ModelError:
    """For shapes that the specs allow and the model does not."""
    shown = " and ".join(str(list(shape)) for shape in shapes)
    return ModelError(f"{path}: does not take inputs of shape {shown}: {why}", "Feed it what its card says.")


def text(spec: Spec) -> str:
    lengths = ", ".join("?" if length < 0 else str(length) for length in spec.shape)
    return f"{spec.dtype}[{lengths}]"


def _fitting(spec: Spec, given: Array) -> Array:
    fits = given.ndim == len(spec.shape) and all(
        wanted in (-1, length) for wanted, length in zip(spec.shape, given.shape, strict=True)
    )
    if given.dtype != spec.dtype or not fits:
        shown = text(Spec(spec.name, str(given.dtype), given.shape))
        raise ModelError(
            f"the model's input '{spec.name}' takes {text(spec)}, not {shown}", "Feed it what its card says."
        )
    return given
