"""Every backend keeps the port's promises: the fake, and OpenVINO on the CPU against a numpy reference of the model."""

import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as ops

from appliance.errors import DeviceError, ModelError
from appliance.inference import models
from appliance.inference.backends import openvino, replay
from appliance.inference.port import PLAN, Backend, Model, Plan, Tensor

WIDTH = 64
SHIPPED = models.load(models.shipped()).model


@dataclass
class Case:
    """A backend, its compiled model, and what the model must answer."""

    backend: Backend
    model: Model
    expected: Callable[[Tensor], Tensor]


def weights(path: Path) -> list[np.ndarray]:
    """The dense layers' weights and biases, in order, as they stand in the file."""
    graph = ov.Core().read_model(path)
    return [node.data for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"]


def reference(path: Path) -> Callable[[Tensor], Tensor]:
    """The shipped autoencoder in numpy and float64: rectified everywhere but at its neck and its end."""
    constants = [constant.astype(np.float64) for constant in weights(path)]
    layers = list(zip(constants[::2], constants[1::2], strict=True))
    neck = min(range(len(layers)), key=lambda rank: layers[rank][0].shape[1])

    def expected(batch: Tensor) -> Tensor:
        values = batch.astype(np.float64)
        for rank, (weight, bias) in enumerate(layers):
            values = values @ weight + bias
            if rank not in (neck, len(layers) - 1):
                values = np.maximum(values, 0.0)
        return values.astype(np.float32)

    return expected


def running_mean(batch: Tensor) -> Tensor:
    rows = batch.astype(np.float64)
    return np.stack([rows[:, max(0, at - 4) : at + 1].mean(axis=1) for at in range(WIDTH)], axis=1).astype(np.float32)


def cases() -> dict[str, Callable[[], Case]]:
    def made(backend: Backend, expected: Callable[[Tensor], Tensor], plan: Plan = PLAN) -> Case:
        return Case(backend, backend.compile(SHIPPED, "CPU", plan), expected)

    return {
        "openvino": lambda: made(openvino.create(openvino.Settings()), reference(SHIPPED)),
        "openvino-8": lambda: made(openvino.create(openvino.Settings(largest_batch=8)), reference(SHIPPED)),
        "openvino-streams": lambda: made(
            openvino.create(openvino.Settings(largest_batch=32)), reference(SHIPPED), Plan(streams=3)
        ),
        "replay-identity": lambda: made(replay.create(replay.Settings(answer="identity")), lambda batch: batch),
        "replay-lowpass": lambda: made(replay.create(replay.Settings()), running_mean),
    }


@pytest.fixture(scope="module", params=list(cases()))
def case(request: pytest.FixtureRequest) -> Case:
    return cases()[request.param]()


def windows(count: int, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@settings(max_examples=60, deadline=None)
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


def test_the_device_is_the_one_that_computes(case: Case) -> None:
    assert case.model.device == "CPU"


def test_a_file_that_is_not_there_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / "model.xml"))):
        case.backend.compile(tmp_path / "model.xml", "CPU")


def test_a_device_that_is_not_there_is_refused(case: Case) -> None:
    with pytest.raises(DeviceError, match="ABACUS") as caught:
        case.backend.compile(SHIPPED, "ABACUS")
    assert caught.value.remedy


# ---- files that OpenVINO is given ---------------------------------------------------------------------------------


def damaged(folder: Path, harm: Callable[[Path], object]) -> Path:
    for name in ("model.xml", "model.bin"):
        shutil.copy(SHIPPED.with_name(name), folder / name)
    harm(folder)
    return folder / "model.xml"


HARM: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda folder: (folder / "model.bin").write_bytes(b"\0" * 1000),
    "no weights": lambda folder: (folder / "model.bin").unlink(),
    "empty weights": lambda folder: (folder / "model.bin").write_bytes(b""),
    "garbage": lambda folder: (folder / "model.xml").write_bytes(b"\x7fELF" + b"\xff" * 500),
    "empty": lambda folder: (folder / "model.xml").write_bytes(b""),
    "half": lambda folder: (folder / "model.xml").write_bytes((folder / "model.xml").read_bytes()[:3000]),
    "unknown operation": lambda folder: replaced(folder, b'type="MatMul"', b'type="Explode"'),
    "another shape": lambda folder: replaced(folder, b'shape="64, 128"', b'shape="64, 129"'),
    "weights beyond the file": lambda folder: replaced(folder, b'offset="0"', b'offset="99999999999"'),
    "a cycle": lambda folder: replaced(folder, b'from-layer="0"', b'from-layer="24"'),
    "more to come": lambda folder: (folder / "model.xml").write_bytes(b'<?xml version="1.0"?><net'),
}


def replaced(folder: Path, old: bytes, new: bytes) -> None:
    text = (folder / "model.xml").read_bytes()
    assert old in text
    (folder / "model.xml").write_bytes(text.replace(old, new))


@pytest.mark.parametrize("harm", list(HARM))
def test_a_damaged_model_is_refused_by_name(tmp_path: Path, harm: str) -> None:
    path = damaged(tmp_path, HARM[harm])
    with pytest.raises(ModelError) as caught:
        openvino.create(openvino.Settings()).compile(path, "CPU")
    assert str(path) in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.remedy


def exported(folder: Path, inputs: list[tuple[list[int], type]]) -> Path:
    parameters = [ops.parameter(shape, dtype) for shape, dtype in inputs]
    whole = ops.concat(parameters, 1) if len(parameters) > 1 else parameters[0]
    ov.serialize(ov.Model([ops.relu(whole)], parameters, "odd"), folder / "model.xml", folder / "model.bin")
    return folder / "model.xml"


def test_a_model_of_two_inputs_is_called_by_their_names(tmp_path: Path) -> None:
    path = exported(tmp_path, [([-1, 4], np.float32), ([-1, 4], np.float32)])
    model = openvino.create(openvino.Settings()).compile(path, "CPU")
    first, second = (spec.name for spec in model.inputs)
    answer = model.run({first: -np.ones((3, 4), np.float32), second: np.ones((3, 4), np.float32)})
    np.testing.assert_array_equal(answer[model.outputs[0].name], np.repeat([[0.0, 1.0]], 4, axis=1).repeat(3, axis=0))
    with pytest.raises(ModelError, match="rows to rows"):
        model.infer(np.ones((3, 4), np.float32))


def test_rows_of_another_shape_are_refused() -> None:
    model = openvino.create(openvino.Settings()).compile(SHIPPED, "CPU")
    for shape in [(3, 1), (3, 63), (64,), (3, 64, 1)]:
        with pytest.raises(ModelError, match="rows of shape"):
            model.infer(np.zeros(shape, np.float32))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_a_model_of_a_fixed_batch_serves_any_number(tmp_path: Path, count: int) -> None:
    model = openvino.create(openvino.Settings()).compile(exported(tmp_path, [([3, 2, 5], np.float32)]), "CPU")
    batch = np.random.default_rng(count).standard_normal((count, 2, 5)).astype(np.float32)
    np.testing.assert_array_equal(model.infer(batch), np.maximum(batch, 0.0))


# ---- the fake ------------------------------------------------------------------------------------------------------


def test_a_recording_is_played(tmp_path: Path) -> None:
    inputs, outputs = windows(5), windows(5, seed=1)
    np.savez(tmp_path / "answers.npz", inputs=inputs, outputs=outputs)
    backend = replay.create(replay.Settings(answer="recording", file=str(tmp_path / "answers.npz")))
    model = backend.compile(SHIPPED, "CPU")
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
        replay.create(replay.Settings(answer="recording", file=str(path))).compile(SHIPPED, "CPU")
