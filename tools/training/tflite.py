"""Writes small float32 networks as TFLite files, for LiteRT and for OpenVINO's reader of them.

    draft = Draft("windows", (-1, 64))
    draft.dense(weights, bias, rectified=True)
    draft.write("reconstruction", path)

Shapes count rows first, -1 is any number of them; images are [rows, height, width, channels].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

SCHEMA_VERSION = 3
MARK = b"TFL3"

Weights = NDArray[np.float32]


class Draft:
    """One chain of operations: each takes what the last one gave."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._buffers: list[Any] = [schema.BufferT()]  # the first one is empty by agreement
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._shape = shape
        self._last = self._first = self._tensor(name, shape)

    def dense(self, weights: Weights, bias: Weights, rectified: bool) -> None:
        """weights [in, out], bias [out]; an image is taken as one row of numbers."""
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = _activation(rectified)
        operator = schema.BuiltinOperator.FULLY_CONNECTED
        self._shape = (self._shape[0], weights.shape[1])
        self._add(operator, options, schema.BuiltinOptions.FullyConnectedOptions, weights.T, bias)

    def convolution(self, weights: Weights, bias: Weights, stride: int) -> None:
        """weights [out, height, width, in], bias [out]; padded so that stride 1 keeps the size; rectified."""
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = stride
        options.padding, options.fusedActivationFunction = schema.Padding.SAME, _activation(True)
        rows, height, width, _ = self._shape
        self._shape = (rows, -(-height // stride), -(-width // stride), len(weights))
        self._add(schema.BuiltinOperator.CONV_2D, options, schema.BuiltinOptions.Conv2DOptions, weights, bias)

    def mean(self) -> None:
        """Of each channel over the image."""
        options = schema.ReducerOptionsT()
        options.keepDims = False
        axes = np.array([1, 2], np.int32)
        self._shape = (self._shape[0], self._shape[3])
        self._add(schema.BuiltinOperator.MEAN, options, schema.BuiltinOptions.ReducerOptions, axes)

    def write(self, name: str, path: Path) -> None:
        self._tensors[self._last].name = name.encode()
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [self._first], [self._last]
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = SCHEMA_VERSION, [graph], self._buffers
        model.operatorCodes = [
            _filled(schema.OperatorCodeT(), deprecatedBuiltinCode=code, builtinCode=code) for code in self._codes
        ]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), MARK)
        path.write_bytes(bytes(builder.Output()))

    def _add(self, code: int, options: Any, kind: int, *constants: NDArray[Any]) -> None:
        if code not in self._codes:
            self._codes.append(code)
        inputs = [self._last, *(self._constant(values) for values in constants)]
        self._last = self._tensor(f"step{len(self._operators)}", self._shape)
        self._operators.append(
            _filled(
                schema.OperatorT(),
                opcodeIndex=self._codes.index(code),
                inputs=inputs,
                outputs=[self._last],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def _constant(self, values: NDArray[Any]) -> int:
        kind = np.int32 if values.dtype == np.int32 else np.float32
        raw = np.ascontiguousarray(values, kind)
        self._buffers.append(_filled(schema.BufferT(), data=np.frombuffer(raw.tobytes(), np.uint8)))
        place = self._tensor(f"constant{len(self._buffers)}", raw.shape, len(self._buffers) - 1)
        self._tensors[place].type = schema.TensorType.INT32 if kind is np.int32 else schema.TensorType.FLOAT32
        return place

    def _tensor(self, name: str, shape: Sequence[int], buffer: int = 0) -> int:
        self._tensors.append(
            _filled(
                schema.TensorT(),
                name=name.encode(),
                shape=[max(length, 1) for length in shape],
                shapeSignature=list(shape) if -1 in shape else None,
                type=schema.TensorType.FLOAT32,
                buffer=buffer,
            )
        )
        return len(self._tensors) - 1


def _activation(rectified: bool) -> int:
    kinds = schema.ActivationFunctionType
    return int(kinds.RELU if rectified else kinds.NONE)


def _filled(thing: Any, **fields: Any) -> Any:
    vars(thing).update(fields)
    return thing
