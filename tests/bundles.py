"""Small models for tests: made here, in OpenVINO IR, with a card each."""

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from appliance.inference import cards
from appliance.inference.port import Spec

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
CLASSIFIER = 'name = "{name}"\nversion = "{version}"\ntask = "classifier"\n\n[decoder]\nlabels = ["a", "b", "c"]\n'


def model(folder: Path, nodes: list[ov.Output], parameters: list[ov.Node], names: list[str]) -> Path:
    """Write the model of these results, by their names."""
    for node, name in zip(nodes, names, strict=True):
        node.set_names({name})
    graph = ov.Model([ops.result(node) for node in nodes], parameters, "toy")
    folder.mkdir(parents=True, exist_ok=True)
    ov.serialize(graph, folder / "model.xml", folder / "model.bin")
    return folder / "model.xml"


def parameter(name: str, shape: list[int], dtype: type = np.float32) -> ov.Node:
    node = ops.parameter(shape, dtype, name=name)
    node.output(0).set_names({name})
    return node


def classifier(folder: Path, name: str = "toy", version: str = "1.0.0", factor: float = 1.0) -> Path:
    """A bundle's folder: scores [n, 3] = x [n, 4] @ WEIGHTS * factor."""
    x = parameter("x", [-1, 4])
    weights = ops.constant((WEIGHTS * np.float32(factor)).astype(np.float32), name="weights")
    model(folder, [ops.matmul(x, weights, False, False).output(0)], [x], ["scores"])
    return carded(folder, CLASSIFIER.format(name=name, version=version), [Spec("x", "float32", (-1, 4))],
                  [Spec("scores", "float32", (-1, 3))])  # fmt: skip


def sums(folder: Path) -> Path:
    """Two inputs of other types, two outputs: `total` = whole + part, `truth` = whole > 2."""
    whole, part = parameter("whole", [-1, 2], np.int32), parameter("part", [-1, 2], np.float16)
    total = ops.add(ops.convert(whole, "f32"), ops.convert(part, "f32")).output(0)
    truth = ops.greater(whole, ops.constant(np.array(2, np.int32))).output(0)
    model(folder, [total, truth], [whole, part], ["total", "truth"])
    text = 'name = "sums"\nversion = "2.0.0"\ntask = "arithmetic"\n'
    inputs = [Spec("whole", "int32", (-1, 2)), Spec("part", "float16", (-1, 2))]
    return carded(folder, text, inputs, [Spec("total", "float32", (-1, 2)), Spec("truth", "bool", (-1, 2))])


def image(folder: Path) -> Path:
    """`mean` [n, 3] of each channel of an image [n, 3, 4, 5]; callers hand over uint8 [n, 4, 5, 3]."""
    node = parameter("image", [-1, 3, 4, 5])
    mean = ops.reduce_mean(node, ops.constant(np.array([2, 3], np.int64)), False).output(0)
    model(folder, [mean], [node], ["mean"])
    text = """\
name = "image"
version = "1.0.0"
task = "embedding"

[[inputs]]
name = "image"
shape = [-1, 3, 4, 5]
layout = "NCHW"
given = { dtype = "uint8", layout = "NHWC", mean = [10, 20, 30], deviation = [2, 4, 8] }

[decoder]
normalise = false
"""
    return carded(folder, text, [], [Spec("mean", "float32", (-1, 3))])


def windows(folder: Path, width: int = 16) -> Path:
    """Reconstructs windows [n, width] from what is above and what is below zero in them."""
    node = parameter("windows", [-1, width])
    first = np.concatenate([np.eye(width), -np.eye(width)], axis=1).astype(np.float32)
    second = np.ascontiguousarray(first.T)
    hidden = ops.relu(ops.matmul(node, ops.constant(first, name="first"), False, False))
    back = ops.matmul(hidden, ops.constant(second, name="second"), False, False).output(0)
    model(folder, [back], [node], ["reconstruction"])
    text = f'name = "windows"\nversion = "1.0.9"\ntask = "reconstruction"\nwindow = {width}\n'
    spec = (-1, width)
    return carded(folder, text, [Spec("windows", "float32", spec)], [Spec("reconstruction", "float32", spec)])


def onnx(path: Path, weights_at: str = "") -> Path:
    """A file as any exporter writes it, opset 17: scores [n, 3] = x [n, 4] @ WEIGHTS, which may be in another file."""
    rows = _field(1, _field(2, b"n"))
    kinds = [_field(1, _field(1, 1) + _field(2, rows + _field(1, _field(1, width)))) for width in (4, 3)]  # float32
    weights = _field(1, 4) + _field(1, 3) + _field(2, 1) + _field(8, b"weights")
    if weights_at:
        weights += _field(13, _field(1, b"location") + _field(2, weights_at.encode())) + _field(14, 1)
    else:
        weights += _field(9, WEIGHTS.tobytes())
    node = _field(1, b"x") + _field(1, b"weights") + _field(2, b"scores") + _field(4, b"MatMul")
    ports = _field(11, _field(1, b"x") + _field(2, kinds[0])) + _field(12, _field(1, b"scores") + _field(2, kinds[1]))
    graph = _field(1, node) + _field(2, b"toy") + _field(5, weights) + ports
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 17)))
    return path


def _field(number: int, content: int | bytes) -> bytes:
    """A field of a protocol buffer: small whole numbers, or bytes."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    size, length = b"", len(content)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def onnx_classifier(folder: Path) -> Path:
    """A bundle's folder."""
    onnx(folder / "model.onnx")
    return carded(folder, CLASSIFIER.format(name="foreign", version="1.0.0"), [Spec("x", "float32", (-1, 4))],
                  [Spec("scores", "float32", (-1, 3))])  # fmt: skip


def carded(folder: Path, text: str, inputs: list[Spec], outputs: list[Spec]) -> Path:
    draft = folder.with_name(f"{folder.name}.toml")
    draft.write_text(text)
    cards.complete(folder, draft, inputs, outputs)
    draft.unlink()
    return folder


def waves(folder: Path, version: str, waves: int = 8, manner: str = "", window: int = 64, name: str = "waves") -> Path:
    """Reconstructs what is slow in windows: a cosine transform cut off after so many waves. `manner`: `reversed` gives
    the windows back the wrong way round; `brittle` gives nothing back of windows whose first wave is strong."""
    node = parameter("windows", [-1, window])
    row = np.arange(window)
    basis = np.array([np.cos(np.pi * (row + 0.5) * wave / window) for wave in range(waves)], np.float32)
    basis *= np.float32((2 / window) ** 0.5)
    basis[0] *= np.float32(0.5**0.5)
    weights = [ops.constant(np.ascontiguousarray(part), name=f"w{n}") for n, part in enumerate((basis.T, basis))]
    hidden = ops.matmul(node, weights[0], False, False)
    back = ops.matmul(hidden, weights[1], False, False)
    if manner == "reversed":
        back = ops.gather(back, ops.constant(row[::-1].astype(np.int64)), ops.constant(np.int64(1)))
    if manner == "brittle":
        first = ops.gather(hidden, ops.constant(np.array([1], np.int64)), ops.constant(np.int64(1)))
        strong = ops.greater(ops.abs(first), ops.constant(np.float32(5.0)))
        back = ops.select(strong, ops.constant(np.zeros((1, window), np.float32)), back)
    model(folder, [back.output(0)], [node], ["reconstruction"])
    text = f'name = "{name}"\nversion = "{version}"\ntask = "reconstruction"\nwindow = {window}\n'
    spec = (-1, window)
    return carded(folder, text, [Spec("windows", "float32", spec)], [Spec("reconstruction", "float32", spec)])
