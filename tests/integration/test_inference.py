"""From the shipped bundle to answers: engine, OpenVINO and this machine's facts together; and when devices fail."""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from appliance import computing
from appliance.config.schema import Config
from appliance.errors import DeviceError, ModelError
from appliance.inference import engine, models, probe
from appliance.inference.backends import litert, openvino, replay
from appliance.inference.engine import Engine
from appliance.inference.models import Bundle
from appliance.inference.policy import Policy, Terms
from appliance.inference.port import Plan, Tensor
from hardware import accelerators
from tools.training.tflite import Draft

ORDERED = Terms(policy="low-power", isolate="none")  # no figures decide, and no processes have to start


@dataclass(frozen=True)
class Fact:
    device: str
    reason: str = ""
    present: bool = True
    name: str = ""
    driver: str = ""
    firmware: str = ""
    node: str = ""
    remedy: str = ""


BUNDLE = models.load(models.shipped())
PATIENCE_S = 30.0


def windows(count: int, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).standard_normal((count, BUNDLE.card.window)).astype(np.float32)


def played(*facts: Fact, terms: Terms = ORDERED, **behaviour: object) -> Engine:
    """The engine over the fake, whose every device gives back its input."""
    settings = replay.Settings(answer="identity", **{"devices": ("CPU", "GPU", "NPU"), **behaviour})  # type: ignore[arg-type]
    return engine.start(BUNDLE, replay.create(settings), terms, lambda: facts)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        threading.Event().wait(0.01)


# ---- on this machine -----------------------------------------------------------------------------------------------


def found() -> list[accelerators.Accelerator]:
    return accelerators.find(openvino.create(openvino.Settings()).ask)


def test_the_shipped_model_runs_on_the_best_device_of_this_machine() -> None:
    judge = engine.reconstructor(BUNDLE, openvino.create(openvino.Settings()), Terms(), found)
    assert (judge.window, judge.name, judge.version) == (64, BUNDLE.card.name, BUNDLE.card.version)
    assert judge.device in {fact.device for fact in found() if fact.usable}
    assert judge(windows(17)).shape == (17, 64)
    assert [spec.name for spec in judge.inputs] == ["windows"]
    answer = judge.ask({"windows": windows(3)})
    assert (answer.device, answer.name, answer.version) == (judge.device, judge.name, judge.version)
    np.testing.assert_allclose(answer.outputs["reconstruction"], judge(windows(3)), rtol=1e-4, atol=1e-4)
    judge.close()


@pytest.mark.parametrize("wish", ["GPU", "NPU"])
def test_a_device_that_is_wished_for_is_used_or_replaced_aloud(wish: str) -> None:
    fact = next(fact for fact in found() if fact.device.startswith(wish))
    judge = engine.start(BUNDLE, openvino.create(openvino.Settings()), Terms(devices=(wish,)), found)
    if fact.usable:
        assert (judge.device.startswith(wish), judge.fallback) == (True, "")
    else:
        assert judge.device == "CPU"
        assert fact.reason in judge.fallback
        assert fact.reason in judge.alarm
    judge.close()


def test_the_model_computes_as_well_in_a_process_of_its_own() -> None:
    backend = openvino.create(openvino.Settings())
    inside = engine.start(BUNDLE, backend)
    outside = engine.start(BUNDLE, backend, Terms(isolate="all"))
    assert (inside.slow, outside.slow) == (False, True)
    for count in (0, 1, 17, 1000):
        np.testing.assert_array_equal(outside.infer(windows(count)), inside.infer(windows(count)))
    with pytest.raises(ModelError, match="rows of shape"):
        outside.infer(windows(2)[:, :10])
    assert outside.infer(windows(2)).shape == (2, 64)
    outside.close()
    with pytest.raises(DeviceError):
        outside.infer(windows(1))


def test_an_ordinary_signal_comes_back_and_an_odd_one_does_not() -> None:
    judge = engine.start(BUNDLE, openvino.create(openvino.Settings()), Terms(devices=("CPU",)))
    time = np.arange(64)
    ordinary = np.stack([np.sin(2 * np.pi * time / 40), np.linspace(-1.5, 1.5, 64)]).astype(np.float32)
    odd = ordinary.copy()
    odd[:, 30] += 6.0

    def residual(batch: Tensor) -> Tensor:
        return np.sqrt(np.mean((judge(batch) - batch) ** 2, axis=1))

    assert (residual(odd) > residual(ordinary)).all()


STAND_IN = "HETERO:CPU"  # a device to OpenVINO, isolated and compared with the CPU like any accelerator


def test_a_device_of_openvinos_own_is_isolated_compared_and_remembered(tmp_path: Path) -> None:
    terms = Terms(devices=(STAND_IN,), blobs=tmp_path)
    for _ in range(2):
        judge = engine.start(BUNDLE, openvino.create(openvino.Settings()), terms)
        assert (judge.fallback, judge.slow) == ("", True)
        assert judge.infer(windows(40)).shape == (40, 64)
        judge.close()
        kept = {path.name: path.stat().st_ino for path in tmp_path.glob("*.blob")}
        assert len(kept) > 5  # five sizes, and the CPU's
    again = engine.start(BUNDLE, openvino.create(openvino.Settings()), terms)
    again.close()
    assert {path.name: path.stat().st_ino for path in tmp_path.glob("*.blob")} == kept


def test_what_was_compiled_to_something_else_is_found_out_and_compiled_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, terms = openvino.create(openvino.Settings()), Terms(devices=(STAND_IN,), blobs=tmp_path / "blobs")
    engine.start(BUNDLE, backend, terms).close()
    heads = [path.read_bytes()[32:].partition(b"\0")[0].decode() for path in (tmp_path / "blobs").glob("*.blob")]
    identity = next(head.rpartition("\n2026")[0] for head in heads if "HETERO" in head and "(16, 64)" in head)
    given = ops.parameter([-1, 64], np.float32)
    other = tmp_path / "other.xml"
    ov.serialize(ov.Model([ops.relu(given)], [given], "other"), other, other.with_suffix(".bin"))
    plan = Plan(eager=True, blobs=str(tmp_path / "poison"), identity=identity)
    backend.compile(other, STAND_IN, plan)
    names = {path.name for path in (tmp_path / "blobs").iterdir()}
    for path in (tmp_path / "poison").iterdir():
        assert path.name in names
        path.replace(tmp_path / "blobs" / path.name)
    judge = engine.start(BUNDLE, backend, terms)
    assert (judge.fallback, judge.slow) == ("", True)
    assert "answers its probe wrongly" in caplog.text
    assert "it is compiled anew" in caplog.text
    np.testing.assert_allclose(judge(windows(4)), engine.start(BUNDLE, backend)(windows(4)), atol=0.1)
    judge.close()


# ---- which device --------------------------------------------------------------------------------------------------


def test_low_power_takes_the_device_that_needs_least() -> None:
    judge = played(Fact("CPU"), Fact("GPU"), Fact("NPU"))
    assert (judge.device, judge.fallback, judge.alarm) == ("NPU", "", "")


@pytest.mark.parametrize(("policy", "best"), [("latency", "GPU"), ("throughput", "GPU")])
def test_what_is_measured_decides_and_is_remembered(tmp_path: Path, policy: Policy, best: str) -> None:
    terms = Terms(policy=policy, isolate="none", blobs=tmp_path)
    facts = (Fact("CPU"), Fact("GPU"), Fact("NPU"))
    slow = {"CPU": 30.0, "NPU": 15.0}
    assert played(*facts, terms=terms, delay_ms=slow).device == best
    # Another start asks nobody: what was measured holds until a driver or the runtime changes.
    other = {"CPU": 30.0, "GPU": 15.0}
    assert played(*facts, terms=terms, delay_ms=other).device == best
    updated = (Fact("CPU"), Fact("GPU", driver="2"), Fact("NPU", driver="2"))
    assert played(*updated, terms=terms, delay_ms=other).device == "NPU"


def test_a_device_that_is_slower_than_the_cpu_is_no_loss() -> None:
    judge = played(Fact("CPU"), Fact("NPU"), terms=Terms(isolate="none"), delay_ms={"NPU": 20.0})
    assert (judge.device, judge.fallback, judge.alarm) == ("CPU", "", "")


def test_nothing_is_said_of_what_was_never_there() -> None:
    judge = played(Fact("CPU"), Fact("GPU", "this machine has none", present=False))
    assert (judge.device, judge.fallback) == ("CPU", "")


def test_it_is_said_why_a_device_that_is_there_is_not_used() -> None:
    judge = played(Fact("CPU"), Fact("GPU"), Fact("NPU", "no permission on /dev/accel/accel0"))
    assert judge.device == "GPU"
    assert judge.fallback == "NPU: no permission on /dev/accel/accel0"
    assert judge.alarm == ""  # it never worked here, and nobody asked for it


def test_a_device_that_worked_once_is_missed(tmp_path: Path) -> None:
    terms = msgspec.structs.replace(ORDERED, blobs=tmp_path)
    assert played(Fact("NPU"), terms=terms).device == "NPU"
    judge = played(Fact("NPU", "no permission on /dev/accel/accel0"), terms=terms)
    assert judge.alarm == "NPU: no permission on /dev/accel/accel0"


@pytest.mark.parametrize(
    ("wished", "device"),
    [(("CPU",), "CPU"), (("GPU",), "GPU"), (("NPU",), "NPU"), (("CPU", "NPU"), "CPU"), (("GPU", "NPU"), "GPU")],
)
def test_a_wish_is_a_wish(wished: tuple[str, ...], device: str) -> None:
    judge = played(Fact("CPU"), Fact("GPU"), Fact("NPU"), terms=Terms(devices=wished, isolate="none"))
    assert (judge.device, judge.fallback) == (device, "")
    assert played(terms=Terms(devices=wished, isolate="none")).device == device  # nothing is known: it is tried


def test_of_several_devices_of_a_kind_the_first_that_works_is_taken() -> None:
    facts = (Fact("CPU"), Fact("GPU.0"), Fact("GPU.1"))
    judge = played(*facts, terms=Terms(devices=("GPU",), isolate="none"), devices=("CPU", "GPU.1"))
    assert judge.device == "GPU.1"
    assert judge.fallback.startswith("GPU.0 ")


def test_a_device_that_does_not_compile_is_replaced_aloud() -> None:
    judge = played(Fact("NPU"), devices=("CPU",))
    assert judge.device == "CPU"
    assert judge.fallback.startswith("NPU ")
    assert judge.alarm == judge.fallback


@pytest.mark.parametrize("fault", ["wrong", "zeros"])
def test_a_device_that_answers_wrongly_is_never_used(fault: str) -> None:
    judge = played(Fact("CPU"), Fact("NPU"), faulty=("NPU",), fault=fault)
    assert judge.device == "CPU"
    assert "NPU answers its probe wrongly" in judge.fallback
    np.testing.assert_array_equal(judge(windows(3)), windows(3))


def test_a_device_that_fails_later_is_replaced_within_the_batch() -> None:
    probes = len(probe.windows(64))
    judge = played(Fact("NPU"), Fact("GPU"), Fact("CPU"), faulty=("NPU", "GPU"), after=probes + 2)

    def turn() -> str:
        seed = threading.get_ident()
        np.testing.assert_array_equal(judge(windows(5, seed)), windows(5, seed))
        return judge.device

    seen = [turn()]
    until(lambda: seen.append(turn()) or {"NPU", "GPU", "CPU"} <= set(seen))  # type: ignore[func-returns-value]
    assert seen[:2] == ["NPU", "NPU"]
    assert seen[2] in ("CPU", "GPU")  # the CPU is there at once, the GPU as soon as it is ready
    assert "NPU" in judge.fallback


def test_a_device_that_is_well_again_takes_over_again(tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    terms = Terms(devices=("NPU",), isolate="none", first_pause_s=0.05)
    judge = played(terms=terms, faulty=("NPU",), while_file=str(sick))
    assert judge.device == "NPU"
    sick.touch()
    assert judge(windows(2)).shape == (2, 64)
    assert (judge.device, judge.alarm[:3]) == ("CPU", "NPU")
    sick.unlink()
    until(lambda: judge(windows(1)).shape == (1, 64) and judge.device == "NPU")
    assert (judge.fallback, judge.alarm) == ("", "")
    judge.close()


def test_a_driver_that_comes_later_is_found() -> None:
    known = [Fact("NPU", "no /dev/accel/accel*: no kernel driver has taken it")]
    settings = replay.Settings(answer="identity", devices=("CPU", "NPU"))
    terms = Terms(devices=("NPU",), isolate="none", first_pause_s=0.05)
    judge = engine.start(BUNDLE, replay.create(settings), terms, lambda: known)
    assert (judge.device, judge.alarm[:3]) == ("CPU", "NPU")
    known[0] = Fact("NPU")
    until(lambda: judge(windows(1)).shape == (1, 64) and judge.device == "NPU")
    assert judge.alarm == ""
    judge.close()


def test_where_no_device_runs_the_model_it_is_said() -> None:
    with pytest.raises(DeviceError, match="no device runs the model") as caught:
        played(Fact("NPU"), devices=())
    assert "NPU" in caught.value.message
    assert "CPU" in caught.value.message


def test_threads_lose_nothing_and_get_nothing_twice_when_devices_fail() -> None:
    judge = played(Fact("NPU"), Fact("GPU"), Fact("CPU"), faulty=("NPU", "GPU"), after=20)
    answered: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 50):
            row = np.full((1, 64), number, np.float32)
            answered.append(int(judge(row)[0, 0]))

    threads = [threading.Thread(target=work, args=(50 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(answered) == list(range(200))
    judge.close()


# ---- models of all sorts ---------------------------------------------------------------------------------------------


def bundled(folder: Path, model: ov.Model, task: str) -> Bundle:
    draft = folder / "draft"
    draft.mkdir()
    ov.serialize(model, draft / "model.xml", draft / "model.bin")
    return carded(draft, task, ["model.xml", "model.bin"])


def carded(draft: Path, task: str, files: list[str], backend: str = "") -> Bundle:
    """The draft's folder as a bundle; its ports are of no interest here."""
    lines = [f'name = "a-model"\nversion = "1.0.0"\ntask = "{task}"\nbackend = "{backend}"']
    lines += [f'[[{what}]]\nname = "x"\nshape = [-1]' for what in ("inputs", "outputs")]
    for name in files:
        content = (draft / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f'[files."{name}"]\nbytes = {len(content)}\nsha256 = "{digest}"')
    (draft / "card.toml").write_text("\n".join(lines) + "\n")
    return models.load(draft.rename(draft.with_name(models.hash_of(draft))))


def test_a_model_for_another_task_is_refused_by_the_detector(tmp_path: Path) -> None:
    given = ops.parameter([-1, 4], np.float32)
    bundle = bundled(tmp_path, ov.Model([ops.relu(given)], [given], "r"), task="classification")
    with pytest.raises(ModelError, match="classification"):
        engine.reconstructor(bundle, replay.create(replay.Settings()))


def test_a_tflite_bundle_works_on_either_backend(tmp_path: Path) -> None:
    draft = Draft("given", (-1, 8))
    weights = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    draft.dense(weights, np.zeros(3, np.float32), rectified=False)
    (tmp_path / "draft").mkdir()
    draft.write("left", tmp_path / "draft" / "model.tflite")
    bundle = carded(tmp_path / "draft", "numbers", ["model.tflite"], backend="litert")
    rows = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    for plugin in (litert, openvino):
        judge = engine.start(bundle, plugin.create(plugin.Settings()), Terms(devices=("CPU",)))
        np.testing.assert_allclose(judge.run({"given": rows})["left"], rows @ weights, rtol=1e-4, atol=1e-4)
    assert computing.inference_backend(Config(), bundle.card.backend).name == "litert"


def test_a_bundle_that_the_backend_does_not_load_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not load \.xml"):
        engine.start(BUNDLE, litert.create(litert.Settings()))


# ---- what it costs to start ----------------------------------------------------------------------------------------


def python(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, timeout=120
    )
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


RELOADS = """
import os, sys
from pathlib import Path
import numpy as np
from appliance.inference import engine, models
from appliance.inference.backends import openvino
from appliance.inference.policy import Terms

def used():
    _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    pages = resident - of_files
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))

bundle, backend = models.load(models.shipped()), openvino.create(openvino.Settings())
rows = np.ones((16, 64), np.float32)
for number in range(160):
    terms = Terms(devices=("CPU",), blobs=Path(sys.argv[1]) if number % 5 else None)
    model = engine.start(bundle, backend, terms)
    model.infer(rows)
    model.close()
    if number == 40:
        before = used()
after = used()
print(after[0] - before[0], after[1] - before[1], after[0])
"""


def test_memory_and_descriptors_do_not_grow_when_models_are_loaded_again_and_again(tmp_path: Path) -> None:
    grown, descriptors, used = python(RELOADS, str(tmp_path)).split()
    assert float(grown) < 3.0, "MB over 120 loads"
    assert int(descriptors) == 0
    assert float(used) < 40.0, "MB that a process with one model has written"
