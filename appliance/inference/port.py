"""A backend compiles a model for a device; a model maps named tensors to named tensors, or rows to rows.

One file a backend under `backends/`; the file's name is its name in the configuration. It has one `Settings` struct,
whose defaults run, and one `create(settings) -> Backend`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Tensor = NDArray[np.float32]
Array = NDArray[Any]  # of any of DTYPES

DTYPES = (
    *("float32", "float16", "float64", "bool"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
)


class Spec(NamedTuple):
    """An input or output of a model."""

    name: str
    dtype: str  # one of DTYPES: numpy's name
    shape: tuple[int, ...]  # -1: any length


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is compiled. Plain values: they travel to the process that computes."""

    streams: int = 1  # inferences at once; 0: as many as the device does most rows a second with
    threads: int = 0  # of the CPU; 0: the backend's choice
    eager: bool = False  # compile every batch size now, so that no later call waits for it
    blobs: str = ""  # folder that keeps what was compiled; empty: nothing is kept
    blobs_bytes: int = 256 << 20  # of all that is kept there
    identity: str = ""  # of the model's content and of the device's driver; empty: nothing is kept


PLAN = Plan()


class Model(Protocol):
    """A compiled model. `device` is the one it really runs on, never the one that was asked for.

    Safe from several threads; the wait inside the runtime releases the interpreter.
    """

    device: str
    per_shape: bool  # `run` compiles for each new combination of shapes, which takes an NPU seconds to minutes

    @property
    def inputs(self) -> tuple[Spec, ...]: ...

    @property
    def outputs(self) -> tuple[Spec, ...]: ...

    def infer(self, batch: Array) -> Array:
        """[n, ...] -> [n, ...], any n, rows that do not see each other: the fast way into a model of one input and one
        output. The answer is the caller's own. ModelError where the model has another form or the rows another shape,
        DeviceError when the device fails.
        """

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference of exactly these tensors, by name. The answers are the caller's own. ModelError where a name,
        dtype or shape is not one of `inputs`, DeviceError when the device fails.
        """

    def close(self) -> None:
        """Give back what the model holds; it is not called again. May be called twice."""


class Backend(Protocol):
    """`name` is its file's, `settings` what it was created with: another process makes the same one of them."""

    name: str
    suffixes: tuple[str, ...]  # of the files it loads: .xml, .onnx, .tflite

    @property
    def settings(self) -> Struct: ...

    @property
    def version(self) -> str:
        """Of the runtime; what one version compiled is nothing to another. DeviceError where it is not installed."""

    def compile(self, path: Path, device: str, plan: Plan = PLAN) -> Model:
        """ModelError when the file is refused, DeviceError when the device cannot run it."""

    def ask(self, device: str, name: str) -> object:
        """A property of a device by OpenVINO's name of it, as `hardware.accelerators.find` asks. RuntimeError where it
        cannot be had."""
