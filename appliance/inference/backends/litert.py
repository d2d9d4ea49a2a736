"""LiteRT, TensorFlow Lite's successor: TFLite on the CPU.

    [detect]
    backend = "litert"

`tools/setup litert` installs it; where the machine has `tflite_runtime` instead, that is used. It must have been built
for numpy 2, as a board's maker may do it: the registry's last one, 2.14.0, was not.
"""

import importlib
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.backends import _files
from appliance.inference.backends._buckets import Bucketed, Shapes, powers
from appliance.inference.port import DTYPES, PLAN, Array, Plan, Spec

RUNTIMES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}  # module -> distribution


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """How models are run. The defaults suit small models."""

    threads: Annotated[int, Meta(ge=1, le=256, description="CPU threads of one model.")] = 1
    largest_batch: Annotated[
        int, Meta(ge=1, le=4096, description="Rows of one inference; larger batches are split. Rounded up to 2^k.")
    ] = 256


def create(settings: Settings) -> "LiteRt":
    return LiteRt(settings)


class LiteRt:
    name = "litert"
    suffixes: tuple[str, ...] = (".tflite",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def version(self) -> str:
        return _runtime()[1]

    def compile(self, path: Path, device: str, plan: Plan = PLAN) -> Bucketed:
        """`device` is CPU. Nothing is compiled that would be worth keeping."""
        if device != "CPU":
            raise DeviceError(f"{device} is not a device of LiteRT", 'It computes on the CPU: detect.device = "CPU".')
        _files.check(path, self.suffixes)
        threads = plan.threads or self.settings.threads
        first = _interpreter(path, threads)
        inputs, outputs = _specs(path, first.get_input_details()), _specs(path, first.get_output_details())

        def make(shapes: Shapes) -> list[_Runner]:
            return [_Runner(path, threads, shapes, inputs) for _ in range(plan.streams or 1)]

        model = Bucketed(inputs, outputs, "CPU", powers(self.settings.largest_batch), make, plan.streams)
        model.try_out(plan.eager)
        return model

    def ask(self, device: str, name: str) -> object:
        module, version = _runtime()
        answers = {("CPU", "FULL_DEVICE_NAME"): platform.processor() or platform.machine()}
        if (device, name) not in answers:
            raise RuntimeError(f"{RUNTIMES[module.__name__.partition('.')[0]]} {version} computes on the CPU only")
        return answers[device, name]


class _Runner:
    """An interpreter of one shape for each input."""

    def __init__(self, path: Path, threads: int, shapes: Shapes, inputs: Sequence[Spec]) -> None:
        interpreter = _interpreter(path, threads)
        self._interpreter = interpreter
        self._places = [detail["index"] for detail in interpreter.get_input_details()]
        self._entered = [np.zeros(shape, spec.dtype) for shape, spec in zip(shapes, inputs, strict=True)]
        self._answer: Array = self._entered[0]
        try:
            for place, shape in zip(self._places, shapes, strict=True):
                interpreter.resize_tensor_input(place, shape)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise tensors.misfit(path, shapes, _line(error)) from None
        self._results = [detail["index"] for detail in interpreter.get_output_details()]

    def rows(self, batch: Array) -> Array:
        """Rows beyond the batch keep what was there before: rows do not see each other."""
        count = len(batch)
        self._entered[0][:count] = batch
        return self.run(self._entered)[0][:count]

    def begin(self, batch: Array) -> None:
        self._answer = self.rows(batch)

    def finish(self) -> Array:
        return self._answer

    def run(self, given: Sequence[Array]) -> list[Array]:
        try:
            for place, array in zip(self._places, given, strict=True):
                self._interpreter.set_tensor(place, array)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(place) for place in self._results]
        except (RuntimeError, ValueError) as error:
            raise DeviceError(
                f"LiteRT failed in an inference: {_line(error)}", 'Try detect.backend = "openvino".'
            ) from None


def _runtime() -> tuple[Any, str]:
    """The interpreter's module and its version. DeviceError where none is installed."""
    for name, distribution in RUNTIMES.items():
        try:
            return importlib.import_module(f"{name}.interpreter"), importlib.metadata.version(distribution)
        except ImportError:
            continue
    raise DeviceError("LiteRT is not installed", "Install it: tools/setup litert.")


def _interpreter(path: Path, threads: int) -> Any:
    module, version = _runtime()
    try:
        return module.Interpreter(model_path=str(path), num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: is refused: {_line(error)}", _files.AGAIN) from None
    except (SystemError, ImportError) as error:  # those of the registry were built for numpy 1, and say it only now
        name = RUNTIMES[module.__name__.partition(".")[0]]
        raise DeviceError(
            f"{name} {version} does not work with numpy {np.__version__}: {_line(error.__cause__ or error)}",
            "Install ai-edge-litert (tools/setup litert), or a tflite_runtime that was built for numpy 2.",
        ) from None


def _specs(path: Path, details: Sequence[Any]) -> tuple[Spec, ...]:
    return tuple(_spec(path, detail) for detail in details)


def _spec(path: Path, detail: Any) -> Spec:
    dtype = np.dtype(detail["dtype"]).name
    if dtype not in DTYPES:
        raise ModelError(f"{path}: '{detail['name']}' is of type {dtype}", f"Export it as {', '.join(DTYPES)}.")
    signature = detail.get("shape_signature")
    shape = signature if signature is not None and len(signature) else detail["shape"]
    if min(shape, default=0) < -1:
        raise ModelError(f"{path}: '{detail['name']}' has a length below 0", _files.AGAIN)
    return Spec(detail["name"], dtype, tuple(int(length) for length in shape))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no reason given"
