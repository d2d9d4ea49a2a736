"""From the shipped bundle to answers: engine, OpenVINO and this machine's facts together; and when devices fail."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import DeviceError, ModelError
from appliance.inference import engine, models
from appliance.inference.backends import openvino, replay
from appliance.inference.engine import Engine
from appliance.inference.port import Tensor
from hardware import accelerators


@dataclass(frozen=True)
class Fact:
    device: str
    reason: str = ""
    present: bool = True


BUNDLE = models.load(models.shipped())


def windows(count: int, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).standard_normal((count, BUNDLE.card.window)).astype(np.float32)


def played(wish: str, *facts: Fact, **behaviour: object) -> Engine:
    """The engine over the fake, whose every device gives back its input."""
    settings = replay.Settings(answer="identity", **{"devices": ("CPU", "GPU", "NPU"), **behaviour})  # type: ignore[arg-type]
    return engine.start(BUNDLE, replay.create(settings), wish, facts)


# ---- on this machine -----------------------------------------------------------------------------------------------


def test_the_shipped_model_runs_on_the_best_device_of_this_machine() -> None:
    facts = accelerators.find(openvino.create(openvino.Settings()).ask)
    judge = engine.start(BUNDLE, openvino.create(openvino.Settings()), "auto", facts)
    assert (judge.window, judge.name, judge.version) == (64, BUNDLE.card.name, BUNDLE.card.version)
    assert judge.device in {fact.device for fact in facts if fact.usable}
    assert judge(windows(17)).shape == (17, 64)


@pytest.mark.parametrize("wish", ["GPU", "NPU"])
def test_a_device_that_is_wished_for_is_used_or_replaced_aloud(wish: str) -> None:
    facts = accelerators.find(openvino.create(openvino.Settings()).ask)
    fact = next(fact for fact in facts if fact.device.startswith(wish))
    judge = engine.start(BUNDLE, openvino.create(openvino.Settings()), wish, facts)
    if fact.usable:
        assert (judge.device.startswith(wish), judge.fallback) == (True, "")
    else:
        assert judge.device == "CPU"
        assert fact.reason in judge.fallback


def test_an_ordinary_signal_comes_back_and_an_odd_one_does_not() -> None:
    judge = engine.start(BUNDLE, openvino.create(openvino.Settings()), "CPU")
    time = np.arange(64)
    ordinary = np.stack([np.sin(2 * np.pi * time / 40), np.linspace(-1.5, 1.5, 64)]).astype(np.float32)
    odd = ordinary.copy()
    odd[:, 30] += 6.0

    def residual(batch: Tensor) -> Tensor:
        return np.sqrt(np.mean((judge(batch) - batch) ** 2, axis=1))

    assert (residual(ordinary) < 0.25).all()
    assert (residual(odd) > 2.0 * residual(ordinary)).all()


# ---- which device --------------------------------------------------------------------------------------------------


def test_auto_takes_the_strongest_device() -> None:
    judge = played("auto", Fact("CPU"), Fact("GPU"), Fact("NPU"))
    assert (judge.device, judge.fallback) == ("NPU", "")


def test_auto_says_nothing_of_what_was_never_there() -> None:
    judge = played("auto", Fact("CPU"), Fact("GPU", "this machine has none", present=False))
    assert (judge.device, judge.fallback) == ("CPU", "")


def test_auto_says_why_a_device_that_is_there_is_not_used() -> None:
    judge = played("auto", Fact("CPU"), Fact("GPU"), Fact("NPU", "no permission on /dev/accel/accel0"))
    assert judge.device == "GPU"
    assert judge.fallback == "NPU: no permission on /dev/accel/accel0"


def test_a_wish_is_a_wish() -> None:
    facts = (Fact("CPU"), Fact("GPU"), Fact("NPU"))
    assert played("CPU", *facts).device == "CPU"
    assert played("GPU", *facts).device == "GPU"
    assert played("NPU").device == "NPU"  # nothing is known of it: it is tried


def test_of_several_devices_of_a_kind_the_first_that_works_is_taken() -> None:
    facts = (Fact("CPU"), Fact("GPU.0"), Fact("GPU.1"))
    judge = played("GPU", *facts, devices=("CPU", "GPU.1"))
    assert judge.device == "GPU.1"
    assert judge.fallback.startswith("GPU.0 ")


def test_a_device_that_does_not_compile_is_replaced_aloud() -> None:
    judge = played("NPU", Fact("NPU"), devices=("CPU",))
    assert judge.device == "CPU"
    assert judge.fallback.startswith("NPU ")


def test_a_device_that_answers_wrongly_is_never_used() -> None:
    judge = played("auto", Fact("CPU"), Fact("NPU"), faulty=("NPU",), fault="wrong")
    assert judge.device == "CPU"
    assert "NPU answers its probe wrongly" in judge.fallback
    np.testing.assert_array_equal(judge(windows(3)), windows(3))


def test_a_device_that_fails_later_is_replaced_within_the_batch() -> None:
    probe = len(engine.probe_windows(64))
    judge = played("auto", Fact("NPU"), Fact("GPU"), Fact("CPU"), faulty=("NPU", "GPU"), after=probe + 2)
    for turn in range(6):
        np.testing.assert_array_equal(judge(windows(5, turn)), windows(5, turn))
    assert judge.device == "CPU"
    assert [part.split()[0] for part in judge.fallback.split("; ")] == ["NPU", "GPU"]


def test_where_no_device_runs_the_model_it_is_said() -> None:
    with pytest.raises(DeviceError, match="no device runs the model") as caught:
        played("auto", Fact("NPU"), devices=())
    assert "NPU" in caught.value.message
    assert "CPU" in caught.value.message


def test_a_model_for_another_task_is_refused(tmp_path: Path) -> None:
    text = (BUNDLE.folder / "card.toml").read_text().replace('"reconstruction"\nwindow', '"classification"\nwindow')
    draft = tmp_path / "draft"
    draft.mkdir()
    for path in BUNDLE.folder.iterdir():
        (draft / path.name).write_bytes(path.read_bytes())
    (draft / "card.toml").write_text(text)
    bundle = models.load(draft.rename(tmp_path / models.hash_of(draft)))
    with pytest.raises(ModelError, match="classification"):
        engine.start(bundle, replay.create(replay.Settings()), "CPU")


# ---- what it costs to start ----------------------------------------------------------------------------------------


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


START = """
import sys
from appliance.inference import engine, models
from appliance.inference.backends import openvino
judge = engine.start(models.load(models.shipped()), openvino.create(openvino.Settings()))
"""


def test_inference_needs_only_openvinos_native_module() -> None:
    code = START + "print([name for name in sys.modules if name.split('.')[:2] in (['openvino'], ['openvino', 'op'])])"
    assert python(code).strip() == "[]"


def test_openvinos_package_still_works_after_it_and_before_it() -> None:
    use = """
import numpy as np, openvino as ov
from openvino import opset13 as ops
given = ops.parameter([2], np.float32)
compiled = ov.compile_model(ov.Model([ops.relu(given)], [given]), 'CPU')
print(compiled([np.array([-1, 1], np.float32)])[0].tolist())
from openvino._pyopenvino import Tensor
print(Tensor is ov.Tensor)
"""
    infer = "print(judge(np.zeros((1, 64), np.float32)).shape)"
    for code in (START + use + infer, use + START + infer):
        assert python(code).splitlines() == ["[0.0, 1.0]", "True", "(1, 64)"]
