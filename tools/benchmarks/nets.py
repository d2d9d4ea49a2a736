"""Three networks with the same weights in each runtime's own format: OpenVINO IR, ONNX and TFLite, all float32.

autoencoder   the shipped model: dense, 64-128-64-10-64-128-64
mlp           dense, 256-512-512-10
cnn           an image of 3 x 64 x 64: three convolutions with stride 2, the mean of each channel, dense
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as ops

from tools.training.tflite import Draft

Weights = NDArray[np.float32]
NAMES = ("autoencoder", "mlp", "cnn")
SEED = 7


@dataclass(frozen=True)
class Step:
    """A dense layer (weights [in, out]) or a convolution (weights [out, in, 3, 3], stride 2), then the rectifier."""

    weights: Weights
    bias: Weights
    rectified: bool

    @property
    def convolves(self) -> bool:
        return self.weights.ndim == 4


@dataclass(frozen=True)
class Net:
    row: tuple[int, ...]  # an input, channels first
    steps: list[Step]


def make(name: str) -> Net:
    if name == "cnn":
        return _cnn()
    sizes = {"autoencoder": [64, 128, 64, 10, 64, 128, 64], "mlp": [256, 512, 512, 10]}[name]
    return Net((sizes[0],), _dense(sizes))


def write_ir(net: Net, path: Path) -> None:
    given = ops.parameter([-1, *net.row], np.float32, name="given")
    given.output(0).set_names({"given"})
    node = given
    for step, flattened in _walk(net):
        if step.convolves:
            kernel = ops.constant(step.weights)
            node = ops.convolution(node, kernel, [2, 2], [0, 0], [0, 0], [1, 1], auto_pad="same_upper")
            node = ops.add(node, ops.constant(step.bias[None, :, None, None]))
        else:
            node = ops.reduce_mean(node, ops.constant([2, 3])) if flattened else node
            node = ops.add(ops.matmul(node, ops.constant(step.weights), False, False), ops.constant(step.bias[None]))
        node = ops.relu(node) if step.rectified else node
    node.output(0).set_names({"left"})
    ov.serialize(ov.Model([node], [given], "net"), path, path.with_suffix(".bin"))


def write_onnx(net: Net, path: Path) -> None:
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    last = "given"

    def add(operation: str, *values: NDArray[np.generic], **attributes: Any) -> None:
        nonlocal last
        names = [f"constant{len(constants) + place}" for place in range(len(values))]
        constants.extend(numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True))
        made = f"step{len(nodes)}"
        nodes.append(helper.make_node(operation, [last, *names], [made], **attributes))
        last = made

    for step, flattened in _walk(net):
        if step.convolves:
            add("Conv", step.weights, step.bias, strides=[2, 2], auto_pad="SAME_UPPER")
        else:
            if flattened:
                add("ReduceMean", np.array([2, 3], np.int64), keepdims=0)
            add("Gemm", step.weights, step.bias)
        if step.rectified:
            add("Relu")
    nodes[-1].output[0] = "left"
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT, ["rows", *net.row])
    left = helper.make_tensor_value_info("left", TensorProto.FLOAT, ["rows", len(net.steps[-1].bias)])
    graph = helper.make_graph(nodes, "net", [given], [left], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_tflite(net: Net, path: Path) -> None:
    """Images are channels last here."""
    draft = Draft("given", (-1, *net.row[1:], net.row[0]) if len(net.row) == 3 else (-1, *net.row))
    for step, flattened in _walk(net):
        if step.convolves:
            draft.convolution(step.weights.transpose(0, 2, 3, 1), step.bias, 2)
        else:
            if flattened:
                draft.mean()
            draft.dense(step.weights, step.bias, step.rectified)
    draft.write("left", path)


WRITERS: dict[str, Callable[[Net, Path], None]] = {".xml": write_ir, ".onnx": write_onnx, ".tflite": write_tflite}


def _walk(net: Net) -> list[tuple[Step, bool]]:
    """Each step, and whether an image becomes a row before it."""
    before = [None, *net.steps[:-1]]
    return [
        (step, last is not None and last.convolves and not step.convolves)
        for step, last in zip(net.steps, before, strict=True)
    ]


def _dense(sizes: list[int]) -> list[Step]:
    dice = np.random.default_rng(SEED)
    return [
        Step(_scaled(dice, (before, after), before), np.zeros(after, np.float32), after != sizes[-1])
        for before, after in pairwise(sizes)
    ]


def _cnn() -> Net:
    dice = np.random.default_rng(SEED)
    sizes = (3, 16, 32, 64)
    steps = [
        Step(_scaled(dice, (after, before, 3, 3), 9 * before), np.zeros(after, np.float32), True)
        for before, after in pairwise(sizes)
    ]
    return Net((3, 64, 64), [*steps, Step(_scaled(dice, (64, 10), 64), np.zeros(10, np.float32), False)])


def _scaled(dice: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Weights:
    return (dice.standard_normal(shape) * math.sqrt(2.0 / fan_in)).astype(np.float32)
