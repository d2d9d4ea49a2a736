"""Samples from files and recordings: what a model is calibrated with, and what it is judged by.

.npy              rows of the only input
.npz              rows by the names of the inputs; `labels`, if there, are the classes of the rows
a folder          its .npy files, each one row or several
.csv, history     channels of numbers, cut into windows that are scaled as the detector scales them
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from appliance.errors import ModelError
from appliance.inference.port import Array, Spec, Tensor

LABELS = "labels"
LARGEST = 4 << 30  # bytes of a file
ROWS = 1_000_000  # of a table that are read
GAP = 8  # a window begins so many times its own length after the one before, where there is enough


@dataclass(frozen=True)
class Samples:
    """Rows of every input, as callers hand them over; classes of the rows where they are known."""

    inputs: dict[str, Array]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def part(self, places: slice | NDArray[np.int64]) -> "Samples":
        kept = {name: rows[places] for name, rows in self.inputs.items()}
        return Samples(kept, None if self.labels is None else self.labels[places])


def load(path: Path, specs: Sequence[Spec], window: int) -> Samples:
    """`window`: length of a window of a time series, 0 where the model takes none. ModelError names file and reason."""
    if path.suffix == ".csv":
        return windowed(_columns(path), specs, window, str(path))
    try:
        if path.is_dir():
            return _of_arrays(path, {specs[0].name: _stacked(path, specs)}, specs)
        if path.stat().st_size > LARGEST:
            raise ModelError(f"{path}: is too large", f"At most {LARGEST:,} bytes are read.")
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            arrays = {name: held[name] for name in held.files} if isinstance(held, np.lib.npyio.NpzFile) else held
    except (OSError, EOFError, BadZipFile, ValueError, TypeError) as error:
        raise ModelError(f"{path}: is no numpy file: {error}", "Write it with numpy.save or numpy.savez.") from None
    if not isinstance(arrays, dict):
        arrays = {specs[0].name: arrays}
    return _of_arrays(path, arrays, specs)


def windowed(channels: Iterable[NDArray[np.float64]], specs: Sequence[Spec], window: int, source: str) -> Samples:
    """Windows of channels, each channel by its own mean and deviation. ModelError where the model takes no windows."""
    if not window or len(specs) != 1:
        raise ModelError(
            f"{source}: holds channels of numbers, and the model takes no windows of one",
            "Calibrate it with its own inputs: --data FILE.npz.",
        )
    found = [rows for channel in channels for rows in [_windows(channel, window)] if len(rows)]
    if not found:
        raise ModelError(f"{source}: has no {window} changing numbers in a row", "Record for longer, then try again.")
    return Samples({specs[0].name: np.concatenate(found).astype(specs[0].dtype)})


def spread(samples: Samples, most: int) -> Samples:
    """At most so many rows, evenly from all of them."""
    if len(samples) <= most:
        return samples
    return samples.part(np.linspace(0, len(samples) - 1, most).astype(np.int64))


def split(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """The first rows and the last `share` of them: what was recorded last judges what was learned before."""
    cut = max(1, min(len(samples) - 1, round(len(samples) * (1 - share))))
    return samples.part(slice(None, cut)), samples.part(slice(cut, None))


def batches(samples: Samples, rows: int) -> Iterator[dict[str, Array]]:
    for start in range(0, len(samples), rows):
        yield samples.part(slice(start, start + rows)).inputs


def _of_arrays(path: Path, arrays: Mapping[str, Any], specs: Sequence[Spec]) -> Samples:
    inputs = {spec.name: _fitting(path, spec, arrays) for spec in specs}
    counts = {len(rows) for rows in inputs.values()}
    labels = arrays.get(LABELS)
    if labels is not None:
        counts.add(len(labels))
        labels = np.asarray(labels, np.int64)
    if len(counts) != 1 or not counts.pop():
        raise ModelError(f"{path}: its arrays have not the same number of rows", "Save a row of each for every sample.")
    return Samples(inputs, labels)


def _fitting(path: Path, spec: Spec, arrays: Mapping[str, Any]) -> Array:
    if spec.name not in arrays:
        raise ModelError(f"{path}: has no '{spec.name}'", f"It has: {', '.join(arrays)}.")
    rows = np.asarray(arrays[spec.name])
    fits = rows.ndim == len(spec.shape) and all(
        wanted in (-1, length) for wanted, length in zip(spec.shape[1:], rows.shape[1:], strict=True)
    )
    if not fits or not np.can_cast(rows.dtype, spec.dtype, "same_kind"):
        raise ModelError(
            f"{path}: '{spec.name}' is {rows.dtype}{list(rows.shape)}, the model takes {spec.dtype}{list(spec.shape)}",
            "Save what callers hand over, one row a sample.",
        )
    return rows.astype(spec.dtype, copy=False)


def _stacked(folder: Path, specs: Sequence[Spec]) -> Array:
    paths = sorted(folder.glob("*.npy"))
    if not paths or len(specs) != 1:
        raise ModelError(f"{folder}: has no .npy files for one input", "Save samples there, or name an .npz file.")
    arrays = [np.load(path, allow_pickle=False) for path in paths]
    return np.concatenate([array if array.ndim == len(specs[0].shape) else array[None] for array in arrays])


def _columns(path: Path) -> list[NDArray[np.float64]]:
    """Columns of numbers; the first one is the time. What is no number is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(itertools.islice(csv.reader(file), 1, ROWS))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelError(
            f"{path}: cannot be read: {error}", "Name a CSV file: a heading, then time and numbers."
        ) from None
    width = max((len(row) for row in rows), default=0)
    table = [[_number(row[place]) if place < len(row) else np.nan for row in rows] for place in range(1, width)]
    return [np.array(column) for column in table]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _windows(channel: NDArray[np.float64], window: int) -> Tensor:
    """[n, window] of a channel's numbers that follow each other, evenly taken. None of one that stands still."""
    values = channel[np.isfinite(channel)]
    deviation = float(values.std()) if len(values) else 0.0
    if len(values) < window or deviation <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros((0, window), np.float32)
    scaled = (values - values.mean()) / deviation
    step = max(1, min(window * GAP, (len(scaled) - window) // 64 or 1))
    return np.lib.stride_tricks.sliding_window_view(scaled, window)[::step].astype(np.float32)
