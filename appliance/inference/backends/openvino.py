"""OpenVINO: IR, ONNX and TFLite on CPU, GPU and NPU.

    [detect]
    backend = "openvino"

A model whose rows may be any number is compiled once for each power of two that is asked for ("bucket"), when it is
first asked for: on a small model a fixed shape costs less than half of what a free one does. Each bucket keeps one
request with its tensors set for good, so that a call is one copy in, one inference, one copy out.
"""

import ctypes
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.backends import _bindings
from appliance.inference.port import DTYPES, Array, Spec

SMALL_WEIGHTS = 4 * 1024 * 1024  # bytes; below, a second thread costs more CPU than it saves time
IR_HEAD = (b"<?xml", b"<net")
MAX_SHAPES = 16  # combinations of input shapes that a model is kept compiled for
TYPES = {  # OpenVINO's name -> numpy's
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "boolean": "bool",
    **{f"{sign}{bits}": f"{word}{bits}" for sign, word in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}


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
    suffixes = (".xml", ".onnx", ".tflite")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def compile(self, path: Path, device: str) -> "Bucketed":
        """`device` is OpenVINO's name: CPU, GPU, GPU.1, NPU."""
        graph = _read(path)
        inputs, outputs = _specs(path, graph.inputs, "input"), _specs(path, graph.outputs, "output")
        largest = _power_of_two(self._settings.largest_batch)
        model = Bucketed(graph, inputs, outputs, device, self._properties(path, device), largest)
        model.try_out()
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
    """A model whose rows are computed in batches of a power of two; without rows, in the shapes that come."""

    def __init__(
        self,
        graph: Any,
        inputs: tuple[Spec, ...],
        outputs: tuple[Spec, ...],
        device: str,
        properties: Mapping[str, object],
        largest: int,
    ) -> None:
        self.inputs, self.outputs, self.device = inputs, outputs, device
        self._row = tensors.row_of(inputs, outputs)
        self._fixed = max(inputs[0].shape[0], 0) if self._row is not None else 0
        self._largest = self._fixed or largest
        self._graph, self._asked, self._properties = graph, device, properties
        self._buckets: dict[int, _Request] = {}
        self._shaped: dict[tuple[tuple[int, ...], ...], _Request] = {}
        self._lock = threading.Lock()

    def try_out(self) -> None:
        """One inference, so that a device that cannot run the model says so now."""
        if self._row is not None:
            self.infer(np.zeros((1, *self._row), self.inputs[0].dtype))
        elif all(-1 not in spec.shape for spec in self.inputs):
            self.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.inputs})

    def infer(self, batch: Array) -> Array:
        tensors.rows_fit(self._row, batch)
        count = len(batch)
        with self._lock:
            if 0 < count <= self._largest:
                return self._bucket(count).rows(batch)
            return self._in_parts(batch)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = tensors.ordered(self.inputs, inputs)
        with self._lock:
            return dict(zip((spec.name for spec in self.outputs), self._for(given).run(given), strict=True))

    def close(self) -> None:
        with self._lock:
            self._buckets.clear()
            self._shaped.clear()

    def _in_parts(self, batch: Array) -> Array:
        starts = range(0, max(len(batch), 1), self._largest)
        parts = [batch[start : start + self._largest] for start in starts]
        return np.concatenate([self._bucket(len(part)).rows(part) for part in parts])

    def _bucket(self, count: int) -> "_Request":
        size = self._fixed or _power_of_two(count)
        found = self._buckets.get(size)
        if found is None:
            found = self._buckets[size] = self._compiled([(size, *self.inputs[0].shape[1:])])
        return found

    def _for(self, given: Sequence[Array]) -> "_Request":
        """Compiled for these very shapes: every device can do that, an NPU nothing else."""
        shapes = tuple(tensor.shape for tensor in given)
        found = self._shaped.get(shapes)
        if found is None:
            while len(self._shaped) >= MAX_SHAPES:
                del self._shaped[next(iter(self._shaped))]
            found = self._shaped[shapes] = self._compiled(shapes)
        return found

    def _compiled(self, shapes: Sequence[tuple[int, ...]]) -> "_Request":
        native = _bindings.load()
        try:
            graph = self._graph
            if any(-1 in spec.shape for spec in self.inputs):
                graph = graph.clone()
                graph.reshape({place: native.PartialShape(list(shape)) for place, shape in enumerate(shapes)})
            compiled = _core().compile_model(graph, self._asked, self._properties)
            self.device = _true_device(compiled, self._asked)
            _give_memory_back()
            entered = [np.zeros(shape, spec.dtype) for shape, spec in zip(shapes, self.inputs, strict=True)]
            return _Request(compiled, self.device, entered, self.outputs)
        except RuntimeError as error:
            raise DeviceError(
                f"{self._asked} cannot compile the model: {_last_line(error)}",
                '`millwright doctor` tells what the device lacks; `detect.device = "CPU"` always runs.',
            ) from None


class _Request:
    """One inference request whose tensors are ours and are set once; outputs of unknown lengths are the runtime's."""

    __slots__ = ("_device", "_entered", "_infer", "_left", "_request")

    def __init__(self, compiled: Any, device: str, entered: list[Array], outputs: Sequence[Spec]) -> None:
        tensor = _bindings.load().Tensor
        self._device, self._entered = device, entered
        self._left: list[Array | None] = [None] * len(outputs)
        self._request = request = compiled.create_infer_request()
        for place, array in enumerate(entered):
            request.set_input_tensor(place, tensor(array, shared_memory=True))
        for place, spec in enumerate(outputs):
            if compiled.outputs[place].partial_shape.is_static:
                array = self._left[place] = np.zeros(tuple(compiled.outputs[place].shape), spec.dtype)
                request.set_output_tensor(place, tensor(array, shared_memory=True))
        self._infer = request.infer

    def rows(self, batch: Array) -> Array:
        """Rows beyond the batch keep what was there before: rows do not see each other."""
        count = len(batch)
        self._entered[0][:count] = batch
        self._call()
        return self._answer(0)[:count].copy()

    def run(self, given: Sequence[Array]) -> list[Array]:
        for entered, array in zip(self._entered, given, strict=True):
            entered[...] = array
        self._call()
        return [self._answer(place).copy() for place in range(len(self._left))]

    def _call(self) -> None:
        try:
            self._infer({}, True, False)
        except RuntimeError as error:
            raise DeviceError(
                f"{self._device} failed in an inference: {_last_line(error)}",
                "`millwright doctor` looks at the device.",
            ) from None

    def _answer(self, place: int) -> Array:
        left = self._left[place]
        if left is not None:
            return left
        own: Array = self._request.get_output_tensor(place).data
        return own


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


def _specs(path: Path, ports: Sequence[Any], what: str) -> tuple[Spec, ...]:
    return tuple(_spec(path, port, f"{what}{rank}") for rank, port in enumerate(ports))


def _spec(path: Path, port: Any, fallback: str) -> Spec:
    """ModelError where the tensor is of a kind that numpy cannot hold."""
    names = sorted(port.names)
    name, kind = (names[0] if names else fallback), port.element_type
    dtype = TYPES.get(kind.get_type_name(), "")
    if dtype not in DTYPES:
        raise ModelError(f"{path}: '{name}' is of type {kind.get_type_name()}", f"Export it as {', '.join(DTYPES)}.")
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise ModelError(f"{path}: '{name}' has any number of dimensions", "Export it with a number of dimensions.")
    return Spec(name, dtype, tuple(-1 if size.is_dynamic else size.get_length() for size in shape))


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
