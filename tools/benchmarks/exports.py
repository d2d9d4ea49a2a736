"""Versions of networks as files that boxes run: OpenVINO IR in several precisions, and safetensors in bfloat16."""

import json
import logging
import struct
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from tools.benchmarks import versions
from tools.benchmarks.learning import Array
from tools.benchmarks.versions import HEADS, WIDTH, Weights

GROUP = 64  # weights that share a scale, of four bits each
CALIBRATION = 24  # batches


def safetensors(weights: Mapping[str, Array], path: Path, bfloat: bool) -> None:
    header: dict[str, Any] = {}
    place, parts = 0, []
    for name, array in weights.items():
        data = (versions.bfloat_bits(array) if bfloat else np.ascontiguousarray(array)).tobytes()
        kind = "BF16" if bfloat else "F32"
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
        parts.append(data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(parts))


def ir(weights: Weights, precision: str, path: Path) -> None:
    """`path` (.xml) and its .bin; precision: fp32, fp16, int8, int4."""
    convolves = "layers.0.conv.weight" in weights
    model = cnn(weights) if convolves else gpt(weights)
    if precision in ("int8", "int4"):
        model = _quantised(model) if convolves else _compressed(model, precision)
    ov.save_model(model, path, compress_to_fp16=precision != "fp32")  # what is not quantised, as converters do


def cnn(weights: Weights) -> ov.Model:
    """Batch normalisation is folded into the convolutions, as converters do."""
    given = ops.parameter([-1, 1, 8, 8], np.float32, name="given")
    node = given
    for number, stride in enumerate(versions.strides(weights)):
        name = f"layers.{number}"
        factor = weights[f"{name}.bn.gain"] / np.sqrt(weights[f"{name}.bn.variance"] + np.float32(1e-5))
        kernel = weights[f"{name}.conv.weight"] * factor[:, None, None, None]
        bias = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.mean"] * factor
        kernel = ops.constant(kernel.astype(np.float32), name=f"{name}.conv.weight")
        node = ops.convolution(node, kernel, [stride] * 2, [1, 1], [1, 1], [1, 1], name=f"{name}/conv")
        node = ops.add(node, ops.constant(bias.astype(np.float32)[None, :, None, None]), name=f"{name}/bn")
        node = ops.relu(node, name=f"{name}/relu")
    node = ops.reduce_mean(node, ops.constant(np.array([2, 3], np.int64)), name="pooled")
    node = ops.matmul(node, ops.constant(weights["head.weight"]), False, True, name="head/product")
    node = ops.add(node, ops.constant(weights["head.bias"][None, :]), name="head")
    return ov.Model([ops.result(node)], [given], "cnn")


def gpt(weights: Weights) -> ov.Model:
    given = ops.parameter([-1, versions.PLACES], np.int64, name="given")
    axis = ops.constant(np.int64(0))
    node = ops.gather(ops.constant(weights["emb.weight"], name="emb.weight"), given, axis, name="emb")
    length = ops.gather(ops.shape_of(given, "i64"), ops.constant(np.int64(1)), axis)
    places = ops.range(ops.constant(np.int64(0)), length, ops.constant(np.int64(1)), "i64")
    node = ops.add(node, ops.gather(ops.constant(weights["pos.weight"], name="pos.weight"), places, axis), name="pos")
    for number in range(versions.blocks(weights)):
        node = _block(node, weights, f"blocks.{number}")
    node = _linear(_normalised(node, weights, "last"), weights, "head.weight")
    return ov.Model([ops.result(node)], [given], "gpt")


def _block(node: ov.Node, weights: Weights, name: str) -> ov.Node:
    inner = _linear(_normalised(node, weights, f"{name}.ln1"), weights, f"{name}.qkv.weight")
    shape = ops.constant(np.array([0, 0, 3 * HEADS, WIDTH // HEADS], np.int64))
    inner = ops.transpose(ops.reshape(inner, shape, True), ops.constant(np.array([0, 2, 1, 3], np.int64)))
    parts = ops.split(inner, ops.constant(np.int64(1)), 3)
    inner = ops.scaled_dot_product_attention(parts.output(0), parts.output(1), parts.output(2), causal=True)
    inner = ops.transpose(inner, ops.constant(np.array([0, 2, 1, 3], np.int64)))
    inner = ops.reshape(inner, ops.constant(np.array([0, 0, WIDTH], np.int64)), True)
    node = ops.add(node, _linear(inner, weights, f"{name}.out.weight"), name=f"{name}/attended")
    inner = ops.relu(_linear(_normalised(node, weights, f"{name}.ln2"), weights, f"{name}.up.weight"))
    return ops.add(node, _linear(inner, weights, f"{name}.down.weight"), name=f"{name}/out")


def _linear(node: ov.Node, weights: Weights, name: str) -> ov.Node:
    return ops.matmul(node, ops.constant(weights[name], name=name), False, True, name=f"{name}/product")


def _normalised(node: ov.Node, weights: Weights, name: str) -> ov.Node:
    node = ops.mvn(node, ops.constant(np.array([-1], np.int64)), True, 1e-5, "INSIDE_SQRT", name=f"{name}/unit")
    node = ops.multiply(
        node, ops.constant(weights[f"{name}.gain"][None, None], name=f"{name}.gain"), name=f"{name}/gain"
    )
    return ops.add(node, ops.constant(weights[f"{name}.bias"][None, None], name=f"{name}.bias"), name=f"{name}/bias")


def _quantised(model: ov.Model) -> ov.Model:
    """Weights and activations of eight bits, from what some batches show."""
    nncf = _nncf()
    batches = [images for images, _ in islice(versions.digits(True, 9), CALIBRATION)]
    with tempfile.TemporaryDirectory(prefix="mw-bench-"):
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=CALIBRATION)


def _compressed(model: ov.Model, precision: str) -> ov.Model:
    """Weights alone."""
    nncf = _nncf()
    if precision == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    mode = nncf.CompressWeightsMode.INT4_SYM
    return nncf.compress_weights(model, mode=mode, group_size=GROUP, all_layers=True)


def _nncf() -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf
