"""Writes layers as OpenVINO IR, the same bytes each time: every node has a name of ours and weights are float32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from tools.training.network import Layer


def write(layers: Sequence[Layer], name: str, path: Path) -> None:
    """`path` (.xml) and its .bin. Input `windows` [-1, width], output `reconstruction` [-1, width]."""
    windows = ops.parameter([-1, len(layers[0].weights)], np.float32, name="windows")
    windows.output(0).set_names({"windows"})
    node = windows
    for rank, layer in enumerate(layers):
        node = _dense(node, layer, f"layer{rank}")
    node.output(0).set_names({"reconstruction"})
    result = ops.result(node, name="reconstruction")
    ov.serialize(ov.Model([result], [windows], name), path, path.with_suffix(".bin"))


def _dense(node: ov.Node, layer: Layer, name: str) -> ov.Node:
    weights = ops.constant(layer.weights.astype(np.float32), name=f"{name}/weights")
    bias = ops.constant(layer.bias.astype(np.float32)[None, :], name=f"{name}/bias")
    node = ops.matmul(node, weights, transpose_a=False, transpose_b=False, name=f"{name}/product")
    node = ops.add(node, bias, name=f"{name}/sum")
    return ops.relu(node, name=f"{name}/rectified") if layer.rectified else node


def rename(path: Path, target: Path) -> None:
    """The same graph with names that are its nodes' places: those a program gives depend on what it did before."""
    model = ov.Core().read_model(path)
    for place, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"node{place}")
    ov.serialize(model, target, target.with_suffix(".bin"))
