"""Post-training quantisation to eight bits with NNCF, and what it costs: size, speed, accuracy, before and after.

Needs the extra `trainer`; nothing of it is imported before it is asked for. NNCF tells its makers of its use unless it
is told not to: a box tells nobody.
"""

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from appliance.errors import InferenceError, ModelError
from appliance.inference import benchmark
from appliance.inference.port import Array, Model
from appliance.inference.samples import Samples, batches

PRESETS = ("mixed", "performance")  # NNCF's: activations asymmetric or symmetric
ROWS = 64  # of a batch that is judged
THROUGHPUT_ROWS = 16
# NNCF averages the ranges of its samples. Of single rows, each of which shows a part of the range, that average is too
# narrow, and what is beyond it is cut off: an identity over windows of a sine kept 91 % of the energy, in parts of 32
# rows 99.999 %.
CALIBRATED = 32
_SILENT = "NNCF_CI"  # its own word for: no telemetry


class Cost(NamedTuple):
    """Of a model's file with its weights, on this machine's CPU."""

    bytes: int
    latency_s: float  # one row
    rows_per_s: float  # of batches of 16 where the number of rows is free, else of one


class Likeness(NamedTuple):
    """How near the quantised answers are to the others, 1 is the same; correctness where the classes are known."""

    kind: str  # what `share` is: agreement of classes, or the energy that is the same
    share: float
    before: float | None = None  # of the rows, whose class is right
    after: float | None = None

    @property
    def kept(self) -> float:
        """What must not be too small: the share of the accuracy that is left, or else of the answers."""
        if self.before is None or self.after is None:
            return self.share
        return self.after / self.before if self.before else 1.0


def quantise(model: Path, calibration: Samples, target: Path, preset: str = "mixed", rows: int = CALIBRATED) -> None:
    """Write the quantised model as IR, `target` .xml and its .bin. `calibration` are the model's own inputs, of which
    it takes `rows` at once.

    InferenceError where NNCF is not installed, ModelError where it refuses the model.
    """
    nncf, openvino = _nncf(), importlib.import_module("openvino")
    parts = list(batches(calibration, rows))
    if len(parts) > 1 and len(next(iter(parts[-1].values()))) < rows:
        parts.pop()  # a smaller last part would weigh as much as the others
    try:
        graph = openvino.Core().read_model(model)
        with warnings.catch_warnings(), _progress():
            warnings.simplefilter("ignore")  # of its own dependencies
            quantised = nncf.quantize(
                graph,
                nncf.Dataset(parts),
                preset=nncf.QuantizationPreset(preset),
                subset_size=len(parts),
            )
        openvino.serialize(quantised, target, target.with_suffix(".bin"))
    except (RuntimeError, nncf.InternalError, nncf.ValidationError, nncf.UnsupportedModelError) as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise ModelError(
            f"{model}: NNCF cannot quantise it: {lines[-1]}", "Export it to ONNX or OpenVINO IR anew."
        ) from error


def cost(path: Path, model: Model, seconds: float) -> Cost:
    one = benchmark.inputs_for(model, 1)
    free = all(spec.shape[:1] == (-1,) for spec in model.inputs)
    rows = THROUGHPUT_ROWS if free else 1
    many = benchmark.inputs_for(model, rows) if free else one
    latency = benchmark.latency(model, one, seconds).median
    files = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
    size = sum(file.stat().st_size for file in files)
    return Cost(size, latency, benchmark.throughput(model, many, rows, 1, seconds))


def likeness(before: Model, after: Model, rows: Samples, scores: str) -> Likeness:
    """`rows` are the model's own inputs; `scores` is the output with a score for each class, empty where none is."""
    if scores:
        first, second = (_classes(model, rows, scores) for model in (before, after))
        share = float(np.mean(first == second))
        if rows.labels is None:
            return Likeness("agreement", share)
        right = [float(np.mean(found == rows.labels)) for found in (first, second)]
        return Likeness("agreement", share, *right)
    return Likeness("energy", _same_energy(before, after, rows))


def _classes(model: Model, rows: Samples, name: str) -> Array:
    parts = [model.run(batch)[name].argmax(axis=-1).reshape(-1) for batch in batches(rows, _rows(model))]
    return np.concatenate(parts)


def _same_energy(before: Model, after: Model, rows: Samples) -> float:
    """1 - |difference|^2 / |answer|^2, of the output that differs most."""
    energy = {spec.name: 0.0 for spec in before.outputs}
    lost = dict(energy)
    for batch in batches(rows, _rows(before)):
        first, second = before.run(batch), after.run(batch)
        for old, new in zip(before.outputs, after.outputs, strict=True):
            wide = first[old.name].astype(np.float64)
            energy[old.name] += float(np.sum(wide**2))
            lost[old.name] += float(np.sum((second[new.name] - wide) ** 2))
    return min(1.0 - lost[name] / energy[name] if energy[name] else 1.0 for name in energy)


def _rows(model: Model) -> int:
    lengths = {spec.shape[0] for spec in model.inputs}
    return ROWS if lengths == {-1} else max(1, *lengths)


@contextmanager
def _progress() -> Iterator[None]:
    """NNCF draws its progress on the standard output, where only results belong."""
    with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


def _nncf() -> Any:
    os.environ.setdefault(_SILENT, "1")
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise InferenceError(
            f"NNCF, which quantises, is not installed here ({error})",
            "On a machine that trains: tools/setup trainer, or pip install 'millwright[trainer]'.",
        ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own setter would change handlers of ours, too
    return nncf
