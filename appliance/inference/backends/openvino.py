"""OpenVINO: IR, ONNX and TFLite on CPU, GPU and NPU.

    [detect]
    backend = "openvino"

Each shape is compiled on its own (see `_buckets`), once: blobs keep it from then on. Each runner keeps one request with
its tensors set for good, so that a call is one copy in, one inference, one copy out.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.backends import _bindings, _files
from appliance.inference.backends._buckets import Bucketed, Shapes, powers
from appliance.inference.blobs import Blobs
from appliance.inference.port import DTYPES, PLAN, Array, Plan, Spec
from appliance.runtime import memory

LARGE = 128 * 1024  # bytes; from here on to set a tensor costs less than to copy into one that is set
SMALL_WEIGHTS = 4 * 1024 * 1024  # bytes; below, a second thread costs more CPU than it saves time
TINY_WEIGHTS, TINY_ROW = 128 * 1024, 256  # bytes, numbers; within, a call costs more than its rows
BATCH, TINY_BATCH = 64, 256  # rows of one inference; a tiny model's cost half as much in the larger one
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
        int,
        Meta(
            ge=0,
            le=4096,
            description="Rows of one inference; larger batches are split. 0: 256 for a tiny model, else 64.",
        ),
    ] = 0


def create(settings: Settings) -> "OpenVino":
    return OpenVino(settings)


class OpenVino:
    name = "openvino"
    suffixes: tuple[str, ...] = (".xml", ".onnx", ".tflite")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def version(self) -> str:
        return str(_bindings.load().get_version())

    def compile(self, path: Path, device: str, plan: Plan = PLAN) -> Bucketed:
        """`device` is OpenVINO's name: CPU, GPU, GPU.1, NPU."""
        weights = _files.check(path, self.suffixes)
        try:
            graph = _core().read_model(str(path))
            inputs, outputs = _specs(path, graph.inputs, "input"), _specs(path, graph.outputs, "output")
        except MemoryError:
            raise ModelError(f"{path}: there is not enough memory for it", "Choose a smaller model.") from None
        except (RuntimeError, ValueError) as error:  # ValueError: a name, or the error's own text, is no text
            raise ModelError(f"{path}: is refused: {_last_line(error)}", _files.AGAIN) from None
        tiny = _on_cpu(device) and _is_tiny(weights, inputs)
        largest = self.settings.largest_batch or (TINY_BATCH if tiny else BATCH)
        # An accelerator takes seconds to minutes for each size, and a tiny model's sizes take more memory than it does;
        # a few rows too many cost both little.
        sizes = powers(largest, 4 if tiny or not _on_cpu(device) else 2)
        compiler = _Compiler(path, graph, inputs, outputs, device, self._properties(weights, device, plan), plan)
        model = Bucketed(
            inputs, outputs, device, sizes, compiler.make, plan.streams, _fixed_only(device), compiler.check
        )
        model.try_out(plan.eager, sizes[-1] if tiny else 1)
        model.device = compiler.device
        return model

    def ask(self, device: str, name: str) -> object:
        try:
            answer: object = _core().get_property(device, name)
            return answer
        except DeviceError as error:
            raise RuntimeError(error.message) from None

    def _properties(self, weights: int, device: str, plan: Plan) -> dict[str, object]:
        hint: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY" if plan.streams == 1 else "THROUGHPUT"}
        if not _on_cpu(device):
            return hint
        threads = plan.threads or self.settings.threads or int(weights <= SMALL_WEIGHTS)
        found: dict[str, object] = {"NUM_STREAMS": plan.streams} if plan.streams else hint
        if plan.streams and threads:
            found["INFERENCE_NUM_THREADS"] = threads * plan.streams
        if self.settings.precision == "f32":
            found["INFERENCE_PRECISION_HINT"] = "f32"
        return found


class _Compiler:
    """Compiles one graph for one shape after the other, or finds it compiled."""

    def __init__(
        self,
        path: Path,
        graph: Any,
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
        device: str,
        properties: Mapping[str, object],
        plan: Plan,
    ) -> None:
        self.device = device  # the one that really computes, once something was compiled
        self._path, self._graph, self._inputs, self._outputs = path, graph, inputs, outputs
        self._asked, self._properties, self._streams = device, properties, plan.streams
        keeps = plan.blobs and plan.identity
        self._blobs = Blobs(Path(plan.blobs), plan.blobs_bytes, plan.identity) if keeps else None

    def make(self, shapes: Shapes) -> "list[_Request]":
        try:
            compiled = self._compiled(shapes)
            self.device = _true_device(compiled, self._asked)
            count = self._streams or compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            return [_Request(compiled, self.device, shapes, self._inputs, self._outputs) for _ in range(count)]
        except RuntimeError as error:
            raise DeviceError(
                f"{self._asked} cannot compile the model: {_last_line(error)}",
                '`millwright doctor` tells what the device lacks; `detect.device = "CPU"` always runs.',
            ) from None

    def check(self, shapes: Shapes) -> None:
        """ModelError where the model does not take them. A graph compiled for free lengths does not look: it would read
        and write beyond its tensors."""
        self._shaped(shapes)

    def _compiled(self, shapes: Shapes) -> Any:
        key = f"{_bindings.load().get_version()}\n{self._asked}\n{sorted(self._properties.items())}\n{shapes}"
        compiled = self._known(key)
        if compiled is None:
            compiled = _core().compile_model(self._shaped(shapes), self._asked, self._properties)
            self._keep(key, compiled)
            memory.give_back()  # compiling leaves some 5 MB
        return compiled

    def _known(self, key: str) -> Any:
        held = self._blobs.get(key) if self._blobs else None
        if held is None:
            return None
        try:
            return _core().import_model(held, self._asked, self._properties)
        except RuntimeError:
            return None  # the device has other ideas of what it can take: what is compiled now replaces it

    def _keep(self, key: str, compiled: Any) -> None:
        if self._blobs is None:
            return
        stream = io.BytesIO()
        try:
            compiled.export_model(stream)
        except RuntimeError:
            return  # not every device can: then it compiles each time
        self._blobs.put(key, stream.getvalue())

    def _shaped(self, shapes: Shapes) -> Any:
        if shapes == tuple(spec.shape for spec in self._inputs):
            return self._graph
        shape = _bindings.load().PartialShape
        graph = self._graph.clone()
        try:
            graph.reshape({place: shape(list(lengths)) for place, lengths in enumerate(shapes)})
        except RuntimeError as error:
            raise tensors.misfit(self._path, shapes, _last_line(error)) from None
        return graph


class _Request:
    """One inference request whose tensors are ours and are set once; large ones are the caller's, set for the call.
    Where lengths are free, all are, and outputs are the runtime's."""

    __slots__ = ("_count", "_device", "_entered", "_first", "_free", "_infer", "_left", "_lent", "_request", "_tensor")

    def __init__(
        self, compiled: Any, device: str, shapes: Shapes, inputs: Sequence[Spec], outputs: Sequence[Spec]
    ) -> None:
        self._tensor = tensor = _bindings.load().Tensor
        self._device, self._count = device, 0
        self._lent: list[Array] = []
        self._free = any(-1 in shape for shape in shapes)
        self._left: list[Array | None] = [None] * len(outputs)
        self._request = request = compiled.create_infer_request()
        self._entered = [np.zeros(np.maximum(shape, 0), spec.dtype) for shape, spec in zip(shapes, inputs, strict=True)]
        self._first = self._entered[0]
        if not self._free:
            self._enter(self._entered)
        for place, spec in enumerate(outputs):
            if compiled.outputs[place].partial_shape.is_static:
                array = self._left[place] = np.zeros(tuple(compiled.outputs[place].shape), spec.dtype)
                request.set_output_tensor(place, tensor(array, shared_memory=True))
        self._infer = request.infer

    def rows(self, batch: Array) -> Array:
        """Rows beyond the batch keep what was there before: rows do not see each other."""
        self._fill(batch)
        try:
            self._infer({}, True, False)
        except RuntimeError as error:
            raise self._failure(error) from None
        return self._answer(0)[: len(batch)].copy()

    def begin(self, batch: Array) -> None:
        self._count = len(batch)
        self._fill(batch)
        try:
            self._request.start_async({}, None)
        except RuntimeError as error:
            raise self._failure(error) from None

    def finish(self) -> Array:
        try:
            self._request.wait()
        except RuntimeError as error:
            raise self._failure(error) from None
        return self._answer(0)[: self._count].copy()

    def run(self, given: Sequence[Array]) -> list[Array]:
        if self._free or sum(array.nbytes for array in given) >= LARGE:
            self._lend(given)
        else:
            self._take_back()
            for entered, array in zip(self._entered, given, strict=True):
                entered[...] = array
        try:
            self._infer({}, True, False)
        except RuntimeError as error:
            raise self._failure(error) from None
        return [self._answer(place).copy() for place in range(len(self._left))]

    def _fill(self, batch: Array) -> None:
        first, count = self._first, len(batch)
        if batch.nbytes >= LARGE and len(first) == count and batch.dtype == first.dtype and batch.flags.c_contiguous:
            self._lend((batch,))
            return
        self._take_back()
        first[:count] = batch

    def _lend(self, arrays: Sequence[Array]) -> None:
        """The caller's own tensors. The runtime does not hold them: we do, until others are set."""
        lent = [array if array.flags.writeable else array.copy() for array in arrays]
        self._enter(lent)
        self._lent = lent

    def _take_back(self) -> None:
        if self._lent:
            self._enter(self._entered)
            self._lent = []

    def _enter(self, arrays: Sequence[Array]) -> None:
        for place, array in enumerate(arrays):
            self._request.set_input_tensor(place, self._tensor(array, shared_memory=True))

    def _answer(self, place: int) -> Array:
        left = self._left[place]
        if left is not None:
            return left
        own: Array = self._request.get_output_tensor(place).data
        return own

    def _failure(self, error: RuntimeError) -> DeviceError:
        return DeviceError(
            f"{self._device} failed in an inference: {_last_line(error)}", "`millwright doctor` looks at the device."
        )


@cache
def _core() -> Any:
    return _bindings.load().Core()


def _is_tiny(weights: int, inputs: Sequence[Spec]) -> bool:
    """Of vectors, not of images: rows that cost next to nothing."""
    shape = inputs[0].shape
    return weights <= TINY_WEIGHTS and len(inputs) == 1 and len(shape) == 2 and 0 < shape[1] <= TINY_ROW


def _on_cpu(device: str) -> bool:
    return device.startswith("CPU")


def _fixed_only(device: str) -> bool:
    """Every device takes fixed shapes; an NPU nothing else."""
    return not device.startswith(("CPU", "GPU"))


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


def _last_line(error: Exception) -> str:
    """OpenVINO's errors are a stack of source files; the last line says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
