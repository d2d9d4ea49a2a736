"""Model files by their tensors: each format, written by its own tools or byte by byte, and broken ones."""

import json
import struct
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from ai_edge_litert import schema_py_generated as schema
from openvino import opset13 as ops

from ota.delta import adapters, formats
from ota.delta.errors import DeltaError, LayoutError
from ota.delta.files import File
from ota.delta.formats import Model, onnx, openvino_ir, safetensors, tflite
from ota.delta.tensors import Kind, Tensor
from tests import deltas
from tools.training.tflite import Draft


def held(path: Path, tensor: Tensor) -> bytes:
    with File(path) as file:
        return file.read(tensor.offset, tensor.size)


def named(model: Model, ending: str) -> Tensor:
    found = [tensor for tensor in model.layout.tensors if tensor.name.endswith(ending)]
    assert len(found) == 1, [tensor.name for tensor in model.layout.tensors]
    return found[0]


def covers_all(model: Model) -> bool:
    ranges = sorted((tensor.offset, tensor.end) for tensor in (*model.layout.tensors, *model.layout.gaps()))
    return [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])] and ranges[-1][
        1
    ] == model.layout.size


# safetensors


def test_safetensors(tmp_path: Path) -> None:
    arrays = {"a.weight": deltas.weights(1, 8, 4), "b": np.arange(5, dtype=np.int64), "c": np.zeros((2, 3), np.uint16)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(deltas.safetensors(arrays))
    model = formats.read(path)
    assert covers_all(model)
    assert [(tensor.name, tensor.kind, tensor.shape) for tensor in model.layout.tensors] == [
        ("a.weight", Kind.F32, (8, 4)),
        ("b", Kind.I64, (5,)),
        ("c", Kind.BF16, (2, 3)),
    ]
    assert held(path, model.layout.tensors[0]) == arrays["a.weight"].tobytes()


def test_scales_of_safetensors_are_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {"a.weight": np.ones((8, 4), np.int8), "a.weight_scale": deltas.weights(1, 8)}
    path.write_bytes(deltas.safetensors(arrays))
    model = formats.read(path)
    assert model.scales["a.weight"].scale.shape == (8, 1)
    assert held(path, model.scales["a.weight"].scale) == arrays["a.weight_scale"].tobytes()


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_of_safetensors_that_is_none(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with File(path) as file, pytest.raises(LayoutError):
        safetensors.read(path, file, file.size)
    assert formats.read(path).layout.tensors == ()


def test_tensors_beyond_the_file_or_over_others_are_left_out(tmp_path: Path) -> None:
    told = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "over": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "far": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]},
        "huge": {"dtype": "F32", "shape": [1 << 62, 1 << 62, 8], "data_offsets": [16, 24]},
    }
    header = json.dumps(told).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    model = formats.read(path)
    assert [(tensor.name, tensor.kind) for tensor in model.layout.tensors] == [("a", Kind.F32), ("huge", Kind.BYTES)]


# OpenVINO IR


def quantised(folder: Path, name: str, counters: int = 0) -> Path:
    """Weights of one byte with zero points and scales, half-precision ones, and two equal constants."""
    for _ in range(counters):
        ops.constant(np.float32(0))  # the names of those behind count on
    given = ops.parameter([-1, 16], np.float32, name="given")
    given.output(0).set_names({"given"})
    weights = ops.constant(np.arange(128, dtype=np.uint8).reshape(8, 16))
    zero = ops.convert(ops.constant(np.full((8, 1), 3, np.uint8)), "f32")
    scaled = ops.multiply(ops.subtract(ops.convert(weights, "f32"), zero), ops.constant(deltas.weights(1, 8, 1)))
    hidden = ops.matmul(given, scaled, False, True, name="dense")
    half = ops.convert(ops.constant(deltas.weights(2, 5, 8).astype(np.float16)), "f32")
    bias = deltas.weights(3, 8)
    sums = ops.add(ops.add(hidden, ops.constant(bias), name="first"), ops.constant(bias), name="again")
    last = ops.matmul(sums, half, False, True, name="head")
    model = ov.Model([ops.result(last.output(0))], [given], "toy")
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    return folder / f"{name}.bin"


def test_openvino_ir(tmp_path: Path) -> None:
    path = quantised(tmp_path, "model")
    model = formats.read(path)
    assert covers_all(model)
    weights = named(model, "dense|MatMul.1|Multiply.0|Subtract.0|Convert.0")
    assert (weights.kind, weights.shape) == (Kind.U8, (8, 16))
    assert held(path, weights) == bytes(range(128))
    scales = model.scales[weights.name]
    assert held(path, scales.scale) == deltas.weights(1, 8, 1).tobytes()
    assert scales.zero is not None
    assert held(path, scales.zero) == bytes([3] * 8)
    assert named(model, "head|MatMul.1|Convert.0").kind is Kind.F16
    assert sum(tensor.shape == (1, 8) or tensor.shape == (8,) for tensor in model.layout.tensors) == 1  # merged


def test_names_of_openvino_ir_stay_from_one_export_to_the_next(tmp_path: Path) -> None:
    first = formats.read(quantised(tmp_path, "a"))
    second = formats.read(quantised(tmp_path, "b", counters=7))
    assert (tmp_path / "a.xml").read_bytes() != (tmp_path / "b.xml").read_bytes()
    assert [tensor.name for tensor in first.layout.tensors] == [tensor.name for tensor in second.layout.tensors]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<net",
        '<!DOCTYPE net [<!ENTITY a "aaaa">]><net><layers/></net>',
        "<net>" + "<a>" * 100 + "</a>" * 100 + "</net>",
        '<net><layers><layer id="0" type="Const"/></layers></net>',
        '<net><layers><layer id="0" name="a" type="Const"><data element_type="f32" shape="1" offset="8" size="400"/>'
        "</layer></layers></net>",
        '<net><layers><layer id="0" name="a" type="Const"><data element_type="f32" shape="x" offset="0" size="4"/>'
        "</layer></layers></net>",
        '<net><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>',
    ],
)
def test_xml_that_is_no_openvino_ir(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(32))
    path.with_suffix(".xml").write_text(text)
    with File(path) as file, pytest.raises(LayoutError):
        openvino_ir.read(path, file, file.size)
    assert formats.read(path).layout.tensors == ()


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(20))
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(32))
    path.with_suffix(".xml").write_text(f'<!DOCTYPE net [<!ENTITY a0 "ha">{laughs}]><net name="&a20;"/>')
    assert formats.read(path).layout.tensors == ()


# TFLite


def float_tflite(path: Path) -> Path:
    draft = Draft("toy", (-1, 16))
    draft.dense(deltas.weights(1, 16, 8), deltas.weights(2, 8), rectified=True)
    draft.dense(deltas.weights(3, 8, 4), deltas.weights(4, 4), rectified=False)
    draft.write("given", path)
    return path


def quantised_tflite(path: Path) -> Path:
    float_tflite(path)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    tensor = model.subgraphs[0].tensors[1]
    tensor.type, tensor.quantization = schema.TensorType.INT8, schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5 + n for n in range(8)], [0] * 8
    model.buffers[tensor.buffer].data = np.arange(128, dtype=np.uint8)
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_tflite(tmp_path: Path) -> None:
    path = float_tflite(tmp_path / "model.tflite")
    model = formats.read(path)
    assert covers_all(model)
    assert {tensor.name: tensor.shape for tensor in model.layout.tensors} == {
        "step0|1": (8, 16),
        "step0|2": (8,),
        "given|1": (4, 8),
        "given|2": (4,),
    }
    assert held(path, named(model, "step0|1")) == deltas.weights(1, 16, 8).T.tobytes()


def test_scales_of_tflite(tmp_path: Path) -> None:
    path = quantised_tflite(tmp_path / "model.tflite")
    model = formats.read(path)
    assert covers_all(model)
    scales = model.scales["step0|1"]
    assert scales.scale.shape == (8, 1)
    assert np.frombuffer(held(path, scales.scale), "<f4").tolist() == [0.5 + n for n in range(8)]
    assert scales.zero is not None
    assert held(path, scales.zero) == bytes(64)


# ONNX


def onnx_model() -> bytes:
    nodes = [
        deltas.onnx_node("DequantizeLinear", ["onnx::W_12", "onnx::W_12_scale"], ["w"]),
        deltas.onnx_node("MatMul", ["given", "w"], ["/first/MatMul_output_0"]),
        deltas.onnx_node("Add", ["/first/MatMul_output_0", "first.bias"], ["result"]),
    ]
    tensors = [
        deltas.onnx_tensor("onnx::W_12", np.arange(32, dtype=np.int8).reshape(8, 4)),
        deltas.onnx_tensor("onnx::W_12_scale", deltas.weights(1, 8)),
        deltas.onnx_tensor("first.bias", deltas.weights(2, 8)),
    ]
    return deltas.onnx(nodes, tensors)


def test_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model())
    model = formats.read(path)
    assert covers_all(model)
    assert [(tensor.name, tensor.kind, tensor.shape) for tensor in model.layout.tensors] == [
        ("w|0", Kind.I8, (8, 4)),
        ("w|1", Kind.F32, (8,)),
        ("first.bias", Kind.F32, (8,)),
    ]
    assert held(path, named(model, "first.bias")) == deltas.weights(2, 8).tobytes()
    assert model.scales["w|0"].scale.shape == (8, 1)


def test_onnx_with_its_tensors_beside(tmp_path: Path) -> None:
    bias, kernel = deltas.weights(2, 8), deltas.weights(3, 8, 4)
    told = [
        {"location": "model.onnx.data", "offset": str(at), "length": str(size)} for at, size in ((0, 32), (64, 128))
    ]
    tensors = [deltas.onnx_tensor("bias", bias, told[0]), deltas.onnx_tensor("kernel", kernel, told[1])]
    (tmp_path / "model.onnx").write_bytes(deltas.onnx([], tensors))
    beside = tmp_path / "model.onnx.data"
    beside.write_bytes(bias.tobytes() + bytes(32) + kernel.tobytes())
    model = formats.read(beside)
    assert covers_all(model)
    assert held(beside, named(model, "kernel")) == kernel.tobytes()
    assert formats.read(tmp_path / "model.onnx").layout.tensors == ()


# All of them, broken


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "tflite", "xml"])
def test_broken_files_have_a_layout_or_none(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    reader = {"safetensors": safetensors, "onnx": onnx, "tflite": tflite, "xml": openvino_ir}[kind]
    if kind == "safetensors":
        whole.write_bytes(deltas.safetensors({"a": deltas.weights(1, 4, 4), "b": np.ones(3, np.int8)}))
    elif kind == "onnx":
        whole.write_bytes(onnx_model())
    elif kind == "tflite":
        quantised_tflite(whole)
    else:
        quantised(tmp_path, "whole")
        (tmp_path / "broken.bin").write_bytes((tmp_path / "whole.bin").read_bytes())
    refused = read = 0
    for data in deltas.broken(whole.read_bytes(), 1, 150):
        path = tmp_path / f"broken.{kind}"
        path.write_bytes(data)
        path = path.with_suffix(".bin") if kind == "xml" else path
        with File(path) as file:
            try:
                found = reader.read(path, file, file.size)
            except LayoutError:
                refused += 1
                continue
        read += 1
        assert found is None or covers_all(found)
    assert refused
    assert read


# Factors


def test_factors_of_an_adapter(tmp_path: Path) -> None:
    down, up = deltas.weights(1, 4, 16), deltas.weights(2, 8, 4)
    name = "base_model.model.layer.0"
    arrays = {
        f"{name}.lora_A.weight": down,
        f"{name}.lora_B.weight": up,
        f"{name}.scaling": np.array([2.0], np.float32),
    }
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(deltas.safetensors(arrays))
    found = adapters.read(path)
    assert list(found) == ["layer.0.weight"]
    assert np.array_equal(found["layer.0.weight"][0], up * 2)
    assert np.array_equal(found["layer.0.weight"][1], down)


def test_a_file_without_factors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(deltas.safetensors({"a": deltas.weights(1, 4, 4)}))
    with pytest.raises(DeltaError, match="no factors"):
        adapters.read(path)
