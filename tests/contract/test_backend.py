"""Every backend keeps the port's promises: the fake, and the real ones on the CPU against numpy."""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as ops

from appliance.errors import DeviceError, ModelError
from appliance.inference.backends import litert, openvino, replay
from appliance.inference.port import DTYPES, PLAN, Backend, Model, Plan, Spec, Tensor
from tests import bundles
from tools.training.tflite import Draft

WIDTH = 64


@dataclass(frozen=True)
class Layer:
    weight: np.ndarray  # [in, out]
    bias: np.ndarray  # [out]
    rectified: bool


def dense() -> list[Layer]:
    dice = np.random.default_rng(11)
    sizes = (WIDTH, 32, 10, 32, WIDTH)
    return [
        Layer(
            (dice.standard_normal((taken, given)) / np.sqrt(taken)).astype(np.float32),
            (dice.standard_normal(given) / 10).astype(np.float32),
            given == 32,
        )
        for taken, given in pairwise(sizes)
    ]


LAYERS = dense()


def reference(batch: Tensor) -> Tensor:
    """The network in numpy and float64."""
    values = batch.astype(np.float64)
    for layer in LAYERS:
        values = values @ layer.weight + layer.bias
        values = np.maximum(values, 0.0) if layer.rectified else values
    return values.astype(np.float32)


def as_ir(folder: Path) -> Path:
    node = given = ops.parameter([-1, WIDTH], np.float32, name="given")
    given.output(0).set_names({"given"})
    for layer in LAYERS:
        product = ops.matmul(node, ops.constant(layer.weight), False, False)
        node = ops.add(product, ops.constant(layer.bias[None]))
        node = ops.relu(node) if layer.rectified else node
    node.output(0).set_names({"left"})
    return exported(folder, ov.Model([node], [given], "dense"))


def as_tflite(folder: Path) -> Path:
    draft = Draft("given", (-1, WIDTH))
    for layer in LAYERS:
        draft.dense(layer.weight, layer.bias, layer.rectified)
    draft.write("left", folder / "model.tflite")
    return folder / "model.tflite"


def exported(folder: Path, model: ov.Model) -> Path:
    ov.serialize(model, folder / "model.xml", folder / "model.bin")
    return folder / "model.xml"


@dataclass
class Case:
    """A backend, its compiled model, and what the model must answer."""

    backend: Backend
    file: Path
    model: Model
    expected: Callable[[Tensor], Tensor]


def running_mean(batch: Tensor) -> Tensor:
    rows = batch.astype(np.float64)
    return np.stack([rows[:, max(0, at - 4) : at + 1].mean(axis=1) for at in range(WIDTH)], axis=1).astype(np.float32)


def made(backend: Backend, file: Path, expected: Callable[[Tensor], Tensor], plan: Plan = PLAN) -> Case:
    return Case(backend, file, backend.compile(file, "CPU", plan), expected)


def real(backend: Backend, file: Path, plan: Plan = PLAN) -> Case:
    return made(backend, file, reference, plan)


CASES: dict[str, Callable[[Path], Case]] = {
    "openvino": lambda room: real(openvino.create(openvino.Settings()), as_ir(room)),
    "openvino-8": lambda room: real(openvino.create(openvino.Settings(largest_batch=8)), as_ir(room)),
    "openvino-streams": lambda room: real(
        openvino.create(openvino.Settings(largest_batch=32)), as_ir(room), Plan(streams=3)
    ),
    "openvino-most": lambda room: real(
        openvino.create(openvino.Settings(largest_batch=1024)), as_ir(room), Plan(streams=0, eager=True)
    ),
    "openvino-tflite": lambda room: real(openvino.create(openvino.Settings()), as_tflite(room)),
    "litert": lambda room: real(litert.create(litert.Settings()), as_tflite(room)),
    "litert-streams": lambda room: real(
        litert.create(litert.Settings(largest_batch=16)), as_tflite(room), Plan(streams=2)
    ),
    "replay-identity": lambda room: made(
        replay.create(replay.Settings(answer="identity")), as_ir(room), lambda rows: rows
    ),
    "replay-lowpass": lambda room: made(replay.create(replay.Settings()), as_ir(room), running_mean),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp("models"))


def windows(count: int, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(count=st.one_of(st.integers(1, 40), st.integers(1, 3000)), seed=st.integers(0, 2**32 - 1))
def test_any_number_of_rows_is_answered(case: Case, count: int, seed: int) -> None:
    batch = windows(count, seed)
    answer = case.model.infer(batch)
    assert answer.dtype == np.float32
    assert answer.shape == (count, WIDTH)
    np.testing.assert_allclose(answer, case.expected(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 511, 512, 513, 3000])
def test_edges_of_the_batch_sizes(case: Case, count: int) -> None:
    batch = windows(count)
    np.testing.assert_allclose(case.model.infer(batch), case.expected(batch), rtol=1e-3, atol=1e-4)


def test_no_rows_give_no_rows(case: Case) -> None:
    assert case.model.infer(windows(0)).shape == (0, WIDTH)


def test_a_batch_may_be_a_view(case: Case) -> None:
    batch = windows(20)[::-2]
    np.testing.assert_allclose(case.model.infer(batch), case.expected(batch), rtol=1e-3, atol=1e-4)


def test_large_values_are_answered_in_proportion(case: Case) -> None:
    batch = windows(5) * np.float32(1e4)
    np.testing.assert_allclose(case.model.infer(batch), case.expected(batch), rtol=1e-3, atol=1.0)


def test_the_answer_is_the_callers_own(case: Case) -> None:
    batch = windows(3)
    first = case.model.infer(batch)
    kept = first.copy()
    second = case.model.infer(windows(3, seed=9))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0.0
    np.testing.assert_array_equal(case.model.infer(batch), kept)


def test_large_and_small_batches_take_turns(case: Case) -> None:
    for count in (3, 256, 3, 512, 1, 2048, 256, 5):
        for batch in (windows(count), frozen(windows(count)), np.asfortranarray(windows(count))):
            np.testing.assert_allclose(case.model.infer(batch), case.expected(batch), rtol=1e-3, atol=1e-4)
        name, left = case.model.inputs[0].name, case.model.outputs[0].name
        answer = case.model.run({name: frozen(windows(count))})[left]
        np.testing.assert_allclose(answer, case.expected(windows(count)), rtol=1e-3, atol=1e-4)


def frozen(batch: Tensor) -> Tensor:
    batch.flags.writeable = False
    return batch


def test_the_batch_is_left_alone(case: Case) -> None:
    batch = windows(7)
    case.model.infer(batch)
    np.testing.assert_array_equal(batch, windows(7))


def test_a_bad_row_spoils_no_other(case: Case) -> None:
    batch = windows(6)
    clean = case.model.infer(batch)
    batch[2] = np.nan
    spoiled = case.model.infer(batch)
    np.testing.assert_array_equal(np.delete(spoiled, 2, axis=0), np.delete(clean, 2, axis=0))
    np.testing.assert_array_equal(case.model.infer(windows(6)), clean)


def test_threads_do_not_mix_their_answers(case: Case) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(40):
            batch = windows(1 + (seed + turn) % 9, seed)
            if not np.allclose(case.model.infer(batch), case.expected(batch), rtol=1e-3, atol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_model_says_what_it_takes_and_gives(case: Case) -> None:
    (taken,), (given,) = case.model.inputs, case.model.outputs
    assert taken.name
    assert given.name
    assert (taken.dtype, given.dtype) == ("float32", "float32")
    assert taken.shape[0] == given.shape[0] == -1
    assert taken.shape[1] in (-1, WIDTH)


def test_named_tensors_are_answered_like_rows(case: Case) -> None:
    (taken,), (given,) = case.model.inputs, case.model.outputs
    for count in (1, 3, 300):
        answer = case.model.run({taken.name: windows(count)})
        assert list(answer) == [given.name]
        np.testing.assert_allclose(answer[given.name], case.expected(windows(count)), rtol=1e-3, atol=1e-4)


def test_named_tensors_that_do_not_fit_are_refused(case: Case) -> None:
    name = case.model.inputs[0].name
    refused: list[tuple[Mapping[str, np.ndarray], str]] = [
        ({}, f"'{name}' is missing"),
        ({name: windows(1), "more": windows(1)}, "no input 'more'"),
        ({name: windows(1).astype(np.float64)}, r"float32\[.*\], not float64\[1, 64\]"),
        ({name: windows(1)[0]}, r"not float32\[64\]"),
    ]
    for inputs, complaint in refused:
        with pytest.raises(ModelError, match=complaint) as caught:
            case.model.run(inputs)
        assert caught.value.remedy


def test_what_is_closed_may_be_closed_again(case: Case) -> None:
    model = case.backend.compile(case.file, "CPU")
    model.close()
    model.close()


def test_a_device_can_be_asked_for_its_name(case: Case) -> None:
    assert isinstance(case.backend.ask("CPU", "FULL_DEVICE_NAME"), str)
    with pytest.raises(RuntimeError):
        case.backend.ask("ABACUS", "FULL_DEVICE_NAME")


def test_the_device_is_the_one_that_computes(case: Case) -> None:
    assert case.model.device == "CPU"


def test_a_file_that_is_not_there_is_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file.name
    with pytest.raises(ModelError, match=re.escape(str(path))):
        case.backend.compile(path, "CPU")


def test_a_device_that_is_not_there_is_refused(case: Case) -> None:
    with pytest.raises(DeviceError, match="ABACUS") as caught:
        case.backend.compile(case.file, "ABACUS")
    assert caught.value.remedy


# ---- files that are refused ------------------------------------------------------------------------------------------


def damaged(folder: Path, harm: Callable[[Path], object]) -> Path:
    path = as_ir(folder)
    harm(folder)
    return path


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<net name="&c;" version="11"><layers/><edges/></net>"""

HARM: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda folder: (folder / "model.bin").write_bytes(b"\0" * 1000),
    "no weights": lambda folder: (folder / "model.bin").unlink(),
    "empty weights": lambda folder: (folder / "model.bin").write_bytes(b""),
    "huge weights": lambda folder: sparse(folder / "model.bin", 3 << 30),
    "huge": lambda folder: sparse(folder / "model.xml", 3 << 30),
    "garbage": lambda folder: (folder / "model.xml").write_bytes(b"\x7fELF" + b"\xff" * 500),
    "empty": lambda folder: (folder / "model.xml").write_bytes(b""),
    "a folder": lambda folder: ((folder / "model.xml").unlink(), (folder / "model.xml").mkdir()),
    "half": lambda folder: (folder / "model.xml").write_bytes((folder / "model.xml").read_bytes()[:3000]),
    "a bomb": lambda folder: (folder / "model.xml").write_bytes(BOMB),
    "deeply nested": lambda folder: (folder / "model.xml").write_bytes(b"<net>" * 100_000),
    "unknown operation": lambda folder: replaced(folder, b'type="MatMul"', b'type="Explode"'),
    "another shape": lambda folder: replaced(folder, b'shape="64, 32"', b'shape="64, 33"'),
    "an endless shape": lambda folder: replaced(folder, b'shape="64, 32"', b'shape="9223372036854775807, 32"'),
    "weights beyond the file": lambda folder: replaced(folder, b'offset="0"', b'offset="99999999999"'),
    "a cycle": lambda folder: replaced(folder, b'from-layer="0"', b'from-layer="24"'),
    "more to come": lambda folder: (folder / "model.xml").write_bytes(b'<?xml version="1.0"?><net'),
}


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def replaced(folder: Path, old: bytes, new: bytes) -> None:
    text = (folder / "model.xml").read_bytes()
    assert old in text
    (folder / "model.xml").write_bytes(text.replace(old, new))


def refuses(backend: Backend, path: Path) -> None:
    """In one line that names the file (or its weights), with a remedy."""
    with pytest.raises(ModelError) as caught:
        backend.compile(path, "CPU")
    assert str(path.with_suffix("")) in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.remedy


@pytest.mark.parametrize("harm", list(HARM))
def test_a_damaged_model_is_refused_by_name(tmp_path: Path, harm: str) -> None:
    refuses(openvino.create(openvino.Settings()), damaged(tmp_path, HARM[harm]))


FILES: dict[str, bytes] = {
    "empty": b"",
    "garbage": bytes(range(256)) * 20,
    "zeros": bytes(5000),
    "a mark and garbage": b"\x1c\0\0\0TFL3" + b"\xff" * 2000,
    "text": b"this is no model\n" * 10,
}


@pytest.mark.parametrize("content", list(FILES))
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@pytest.mark.parametrize("backend", [openvino, litert], ids=["openvino", "litert"])
def test_a_file_that_is_no_model_is_refused_by_name(
    tmp_path: Path, backend: ModuleType, suffix: str, content: str
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(FILES[content])
    refuses(backend.create(backend.Settings()), path)


@pytest.mark.parametrize("backend", [openvino, litert], ids=["openvino", "litert"])
def test_a_tflite_model_that_is_cut_off_or_huge_is_refused_by_name(tmp_path: Path, backend: ModuleType) -> None:
    path = as_tflite(tmp_path)
    whole = path.read_bytes()
    for length in (40, 1000, len(whole) // 2):
        path.write_bytes(whole[:length])
        refuses(backend.create(backend.Settings()), path)
    path.write_bytes(whole)
    sparse(path, 3 << 30)
    refuses(backend.create(backend.Settings()), path)


def test_an_onnx_model_that_is_cut_off_huge_or_reaches_out_is_refused_by_name(tmp_path: Path) -> None:
    path = bundles.onnx(tmp_path / "model.onnx")
    backend = openvino.create(openvino.Settings())
    whole = path.read_bytes()
    np.testing.assert_allclose(backend.compile(path, "CPU").infer(np.ones((2, 4), np.float32))[0], [18, 22, 26])
    for length in (10, 60, len(whole) - 20):
        path.write_bytes(whole[:length])
        refuses(backend, path)
    sparse(path, 3 << 30)
    refuses(backend, path)
    (tmp_path / "secret").write_bytes(bundles.WEIGHTS.tobytes())
    folder = tmp_path / "bundle"
    refuses(backend, bundles.onnx(folder / "model.onnx", weights_at="../secret"))


def test_a_kind_of_file_that_a_backend_does_not_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="kind") as caught:
        litert.create(litert.Settings()).compile(as_ir(tmp_path), "CPU")
    assert ".tflite" in caught.value.remedy


# ---- models of other forms -------------------------------------------------------------------------------------------


def rectifier(inputs: list[tuple[list[int], type]]) -> ov.Model:
    parameters = [ops.parameter(shape, dtype) for shape, dtype in inputs]
    whole = ops.concat(parameters, 1) if len(parameters) > 1 else parameters[0]
    return ov.Model([ops.relu(whole)], parameters, "odd")


def test_a_model_of_two_inputs_is_called_by_their_names(tmp_path: Path) -> None:
    path = exported(tmp_path, rectifier([([-1, 4], np.float32), ([-1, 4], np.float32)]))
    model = openvino.create(openvino.Settings()).compile(path, "CPU")
    first, second = (spec.name for spec in model.inputs)
    answer = model.run({first: -np.ones((3, 4), np.float32), second: np.ones((3, 4), np.float32)})
    np.testing.assert_array_equal(answer[model.outputs[0].name], np.repeat([[0.0, 1.0]], 4, axis=1).repeat(3, axis=0))
    with pytest.raises(ModelError, match="rows to rows"):
        model.infer(np.ones((3, 4), np.float32))


def field(number: int, content: bytes | int) -> bytes:
    """One of a protocol buffer; numbers and lengths below 128."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    return bytes([number << 3 | 2, len(content)]) + content


def test_an_onnx_model_is_loaded(tmp_path: Path) -> None:
    rows, four = field(1, field(2, b"rows")), field(1, field(1, 4))
    kind = field(1, field(1, 1) + field(2, rows + four))  # float32 [rows, 4]
    node = field(1, b"given") + field(2, b"left") + field(4, b"Relu")
    ports = field(11, field(1, b"given") + field(2, kind)) + field(12, field(1, b"left") + field(2, kind))
    graph = field(1, node) + field(2, b"g") + ports
    (tmp_path / "model.onnx").write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 17)))
    model = openvino.create(openvino.Settings()).compile(tmp_path / "model.onnx", "CPU")
    assert (model.inputs, model.outputs) == ((Spec("given", "float32", (-1, 4)),), (Spec("left", "float32", (-1, 4)),))
    np.testing.assert_array_equal(model.infer(np.array([[-1, 0, 1, 2]], np.float32)), [[0, 0, 1, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_number_goes_in_and_comes_out(tmp_path: Path, dtype: str) -> None:
    given = ops.parameter([-1, 2], np.dtype(dtype).type, name="given")
    given.output(0).set_names({"given"})
    turned = ops.concat([ops.gather(given, [1], 1), ops.gather(given, [0], 1)], 1)
    turned.output(0).set_names({"turned"})
    model = openvino.create(openvino.Settings()).compile(exported(tmp_path, ov.Model([turned], [given], "t")), "CPU")
    assert model.inputs == (Spec("given", dtype, (-1, 2)),)
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    answer = model.run({"given": values})["turned"]
    assert answer.dtype == dtype
    np.testing.assert_array_equal(answer, values[:, ::-1])
    np.testing.assert_array_equal(model.infer(values), values[:, ::-1])


def test_several_outputs_come_by_name_and_free_lengths_stay_free(tmp_path: Path) -> None:
    image = ops.parameter([-1, 3, -1, -1], np.float32, name="image")
    image.output(0).set_names({"image"})
    total, most = ops.reduce_sum(image, [1, 2, 3]), ops.reduce_max(image, [2, 3], keep_dims=True)
    total.output(0).set_names({"total"})
    most.output(0).set_names({"most"})
    path = exported(tmp_path, ov.Model([total, most], [image], "i"))
    model = openvino.create(openvino.Settings()).compile(path, "CPU")
    assert model.inputs[0].shape == (-1, 3, -1, -1)
    for shape in [(1, 3, 4, 5), (2, 3, 8, 8), (1, 3, 4, 5)]:
        values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        answer = model.run({"image": values})
        assert set(answer) == {"total", "most"}
        np.testing.assert_allclose(answer["total"], values.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(answer["most"], values.max(axis=(2, 3), keepdims=True))


@pytest.mark.parametrize("operation", ["reshape", "add", "product"])
def test_free_lengths_that_the_model_cannot_compute_are_refused(tmp_path: Path, operation: str) -> None:
    """OpenVINO compiled for free lengths would take them, and crash."""
    image = ops.parameter([-1, 1, -1, -1], np.float32, name="image")
    image.output(0).set_names({"image"})
    done = {
        "reshape": lambda: ops.reshape(image, ops.constant(np.array([1, 64], np.int64)), special_zero=False),
        "add": lambda: ops.add(image, ops.constant(np.ones((1, 1, 8, 8), np.float32))),
        "product": lambda: ops.matmul(image, ops.constant(np.ones((1, 1, 8, 8), np.float32)), False, False),
    }[operation]()
    done.output(0).set_names({"done"})
    path = exported(tmp_path, ov.Model([done], [image], "picky"))
    model = openvino.create(openvino.Settings()).compile(path, "CPU")
    for _ in range(2):
        assert model.run({"image": np.ones((1, 1, 8, 8), np.float32)})["done"].size == 64
        with pytest.raises(ModelError, match="does not take inputs of shape"):
            model.run({"image": np.ones((1, 1, 3, 3), np.float32)})


def test_outputs_whose_lengths_depend_on_the_values(tmp_path: Path) -> None:
    given = ops.parameter([-1], np.float32, name="given")
    given.output(0).set_names({"given"})
    places = ops.non_zero(given)
    places.output(0).set_names({"places"})
    model = openvino.create(openvino.Settings()).compile(exported(tmp_path, ov.Model([places], [given], "n")), "CPU")
    for values in ([0.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]):
        answer = model.run({"given": np.array(values, np.float32)})["places"]
        np.testing.assert_array_equal(answer, [np.flatnonzero(values)])


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = openvino.create(openvino.Settings()).compile(as_ir(tmp_path), "CPU")
    for shape in [(3, 1), (3, 63), (64,), (3, 64, 1)]:
        with pytest.raises(ModelError, match="rows of shape"):
            model.infer(np.zeros(shape, np.float32))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_a_model_of_a_fixed_batch_serves_any_number(tmp_path: Path, count: int) -> None:
    path = exported(tmp_path, rectifier([([3, 2, 5], np.float32)]))
    model = openvino.create(openvino.Settings()).compile(path, "CPU")
    batch = np.random.default_rng(count).standard_normal((count, 2, 5)).astype(np.float32)
    np.testing.assert_array_equal(model.infer(batch), np.maximum(batch, 0.0))


# ---- the fake ------------------------------------------------------------------------------------------------------


def test_a_recording_is_played(tmp_path: Path) -> None:
    inputs, outputs = windows(5), windows(5, seed=1)
    np.savez(tmp_path / "answers.npz", inputs=inputs, outputs=outputs)
    backend = replay.create(replay.Settings(answer="recording", file=str(tmp_path / "answers.npz")))
    model = backend.compile(as_ir(tmp_path), "CPU")
    np.testing.assert_array_equal(model.infer(inputs[[3, 0]]), outputs[[3, 0]])
    with pytest.raises(ModelError, match="no answer to this input"):
        model.infer(windows(1, seed=2))


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04" + b"\0" * 40], ids=["empty", "garbage", "half a zip"]
)
def test_a_recording_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers.npz"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        replay.create(replay.Settings(answer="recording", file=str(path))).compile(as_ir(tmp_path), "CPU")
