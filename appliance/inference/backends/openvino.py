"""OpenVINO: IR, ONNX and TFLite on CPU, GPU and NPU.

    [detect]
    backend = "openvino"

A model whose rows may be any number is compiled once for each power of two that is asked for ("bucket"), when it is
first asked for: on a small model a fixed shape costs less than half of what a free one does. Each bucket keeps one
request with its tensors set for good, so that a call is one copy in, one inference, one copy out.
"""

import ctypes
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import DeviceError, ModelError
from appliance.inference.backends import _bindings
from appliance.inference.port import Tensor

SMALL_WEIGHTS = 4 * 1024 * 1024  # bytes; below, a second thread costs more CPU than it saves time
IR_HEAD = (b"<?xml", b"<net")


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """How models are compiled. The defaults suit the models that are shipped."""

    threads: Annotated[
        int,
        Meta(ge=0, le=256, description="CPU threads of one model; 0: one for a small model, else OpenVINO's choice."),
    ] = 0
    precision: Annotated[
        Literal["f32", "device"],
        Meta(
            description="`f32`: every CPU gives the same answers; `device`: bfloat16 where the CPU is faster with it."
        ),
    ] = "f32"
    largest_batch: Annotated[
        int, Meta(ge=1, le=4096, description="Rows of one inference; larger batches are split. Rounded up to 2^k.")
    ] = 256


def create(settings: Settings) -> "OpenVino":
    return OpenVino(settings)


def ask(device: str, name: str) -> object:
    """A property of a device, as `hardware.accelerators.find` asks for it. RuntimeError where it cannot be had."""
    try:
        answer: object = _core().get_property(device, name)
        return answer
    except DeviceError as error:
        raise RuntimeError(error.message) from None


class OpenVino:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def compile(self, path: Path, device: str) -> "Bucketed":
        """One float32 input and one output are served. `device` is OpenVINO's name: CPU, GPU, GPU.1, NPU."""
        graph = _read(path)
        _one_float_in_and_out(path, graph)
        model = Bucketed(graph, device, self._properties(path, device), _power_of_two(self._settings.largest_batch))
        model.infer(np.zeros((1, *model.row), np.float32))  # so that a device that cannot run it says so now
        return model

    def _properties(self, path: Path, device: str) -> dict[str, object]:
        if not device.startswith("CPU"):
            return {"PERFORMANCE_HINT": "LATENCY"}
        small = path.with_suffix(".bin" if path.suffix == ".xml" else path.suffix).stat().st_size <= SMALL_WEIGHTS
        threads = self._settings.threads or (1 if small else 0)
        found: dict[str, object] = {"NUM_STREAMS": 1}
        if threads:
            found["INFERENCE_NUM_THREADS"] = threads
        if self._settings.precision == "f32":
            found["INFERENCE_PRECISION_HINT"] = "f32"
        return found


class Bucketed:
    """A model compiled for power-of-two batches. `row` is the shape of one row of input."""

    def __init__(self, graph: Any, device: str, properties: Mapping[str, object], largest: int) -> None:
        shape = graph.inputs[0].partial_shape
        self.row = tuple(size.get_length() for size in list(shape)[1:])
        self._fixed = 0 if shape[0].is_dynamic else shape[0].get_length()
        self._largest = self._fixed or largest
        self._graph, self._asked, self._properties = graph, device, properties
        self._requests: dict[int, _Request] = {}
        self._lock = threading.Lock()
        self.device = device

    def infer(self, batch: Tensor) -> Tensor:
        """[n, *row] float32 -> [n, ...] float32. ModelError where the rows have another shape."""
        if batch.shape[1:] != self.row:
            raise ModelError(
                f"the model takes rows of shape {self.row}, not {batch.shape[1:]}", "Feed it what its card says."
            )
        count = len(batch)
        with self._lock:
            if 0 < count <= self._largest:
                return self._request(count).run(batch)
            return self._in_parts(batch)

    def _in_parts(self, batch: Tensor) -> Tensor:
        starts = range(0, max(len(batch), 1), self._largest)
        parts = [batch[start : start + self._largest] for start in starts]
        return np.concatenate([self._request(len(part)).run(part) for part in parts])

    def _request(self, count: int) -> "_Request":
        size = self._fixed or _power_of_two(count)
        found = self._requests.get(size)
        if found is None:
            found = self._requests[size] = self._compiled(size)
        return found

    def _compiled(self, size: int) -> "_Request":
        native = _bindings.load()
        try:
            graph = self._graph
            if not self._fixed:
                graph = graph.clone()
                graph.reshape({0: native.PartialShape([size, *self.row])})
            compiled = _core().compile_model(graph, self._asked, self._properties)
            self.device = _true_device(compiled, self._asked)
            _give_memory_back()
            return _Request(compiled, self.device, (size, *self.row))
        except RuntimeError as error:
            raise DeviceError(
                f"{self._asked} cannot compile the model: {_last_line(error)}",
                '`millwright doctor` tells what the device lacks; `detect.device = "CPU"` always runs.',
            ) from None


class _Request:
    """One inference request whose tensors are ours and are set once."""

    __slots__ = ("_device", "_entered", "_infer", "_keep", "_left")

    def __init__(self, compiled: Any, device: str, shape: tuple[int, ...]) -> None:
        tensor = _bindings.load().Tensor
        request = compiled.create_infer_request()
        self._device = device
        self._entered = np.zeros(shape, np.float32)
        self._left = np.zeros(tuple(compiled.outputs[0].shape), np.float32)
        request.set_input_tensor(tensor(self._entered, shared_memory=True))
        request.set_output_tensor(tensor(self._left, shared_memory=True))
        self._infer = request.infer
        self._keep = compiled

    def run(self, batch: Tensor) -> Tensor:
        """Rows beyond the batch keep what was there before: rows do not see each other."""
        count = len(batch)
        self._entered[:count] = batch
        try:
            self._infer({}, True, False)
        except RuntimeError as error:
            raise DeviceError(
                f"{self._device} failed in an inference: {_last_line(error)}",
                "`millwright doctor` looks at the device.",
            ) from None
        return self._left[:count].copy()


@cache
def _core() -> Any:
    return _bindings.load().Core()


def _read(path: Path) -> Any:
    """The graph of a file. ModelError where OpenVINO refuses it."""
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "Copy the whole bundle again.") from None
    # OpenVINO would try six other formats on a file that is no IR: slow, and more parsers than a hostile file deserves.
    if path.suffix == ".xml" and not head.startswith(IR_HEAD):
        raise ModelError(f"{path}: is no OpenVINO model", "Copy the whole bundle again.")
    try:
        return _core().read_model(str(path))
    except RuntimeError as error:
        raise ModelError(f"{path}: is refused: {_last_line(error)}", "Copy the whole bundle again.") from None


def _one_float_in_and_out(path: Path, graph: Any) -> None:
    remedy = "Export it with one float32 input and one float32 output."
    for what, ports in (("input", graph.inputs), ("output", graph.outputs)):
        if len(ports) != 1:
            raise ModelError(f"{path}: has {len(ports)} {what}s, one is served", remedy)
        if ports[0].element_type != _bindings.load().Type.f32:
            raise ModelError(f"{path}: its {what} is {ports[0].element_type.get_type_name()}, not f32", remedy)
    shape = graph.inputs[0].partial_shape
    if shape.rank.is_dynamic or len(shape) < 1 or any(size.is_dynamic for size in list(shape)[1:]):
        raise ModelError(f"{path}: its input {shape} leaves more open than the number of rows", remedy)


def _true_device(compiled: Any, asked: str) -> str:
    try:
        return ",".join(compiled.get_property("EXECUTION_DEVICES")) or asked
    except RuntimeError:
        return asked  # a plugin without this property runs what it was asked to run


def _give_memory_back() -> None:
    """Compiling leaves some 5 MB free inside the allocator, which glibc gives back only when told to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _last_line(error: RuntimeError) -> str:
    """OpenVINO's errors are a stack of source files; the last line says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
