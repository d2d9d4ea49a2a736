"""A device that hangs, crashes or lies: its process ends, another device does its work, nothing is lost."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.errors import DeviceError, ModelError
from appliance.events import codec, topics
from appliance.events.schema import Alarm, AlarmState, Kind, Reading, Score
from appliance.inference import engine, models, probe
from appliance.inference.backends import openvino, replay
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.engine import Engine
from appliance.inference.isolated.workers import Isolated, LostError, Workers
from appliance.inference.policy import Terms
from appliance.inference.port import PLAN, Tensor
from appliance.inference.vetting import vet
from appliance.runtime.group import Heart
from appliance.services.detect import Detect

BUNDLE = models.load(models.shipped())
PATIENCE_S = 30.0
DEADLINE_S = 0.3


def rows(count: int, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)


def fake(**behaviour: object) -> replay.Replay:
    settings = {"answer": "identity", "devices": ("CPU", "NPU"), "faulty": ("NPU",), **behaviour}
    return replay.create(replay.Settings(**settings))  # type: ignore[arg-type]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        threading.Event().wait(0.01)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


# ---- one process -----------------------------------------------------------------------------------------------------


def isolated(workers: Workers, **behaviour: object) -> Isolated:
    return workers.compile(fake(**behaviour), BUNDLE.model, "NPU", PLAN, DEADLINE_S)


def test_a_device_that_hangs_is_killed_at_its_deadline() -> None:
    workers = Workers()
    model = isolated(workers, fault="hang", after=1)
    np.testing.assert_array_equal(model.infer(rows(3)), rows(3))
    with pytest.raises(LostError, match=r"NPU did not answer within 0\.3 s; its process was killed") as caught:
        model.infer(rows(3))
    assert caught.value.remedy
    assert not psutil.pid_exists(model.pid)
    with pytest.raises(DeviceError):
        model.infer(rows(1))
    workers.close()


def test_a_device_that_crashes_takes_nothing_along() -> None:
    workers = Workers()
    model = isolated(workers, fault="crash", after=1)
    np.testing.assert_array_equal(model.infer(rows(3)), rows(3))
    with pytest.raises(LostError, match=r"NPU crashed its process \(SIGSEGV\)"):
        model.infer(rows(3))
    workers.close()


def test_a_process_that_is_killed_from_outside_is_noticed() -> None:
    workers = Workers()
    model = isolated(workers)
    os.kill(model.pid, signal.SIGKILL)
    with pytest.raises(LostError, match="SIGKILL"):
        model.infer(rows(1))
    workers.close()


def test_an_error_of_the_device_leaves_its_process_alive() -> None:
    workers = Workers()
    model = isolated(workers, fault="fail", after=1)
    model.infer(rows(1))
    for _ in range(2):
        with pytest.raises(DeviceError, match="the replay ends here") as caught:
            model.infer(rows(1))
        assert not isinstance(caught.value, LostError)
    assert psutil.pid_exists(model.pid)
    workers.close()
    assert not psutil.pid_exists(model.pid)


def test_tensors_of_every_size_pass() -> None:
    workers = Workers()
    model = isolated(workers, faulty=())
    for count in (0, 1, 255, 256, 257, 50_000, 3):
        np.testing.assert_array_equal(model.infer(rows(count)), rows(count))
        np.testing.assert_array_equal(model.run({"input": rows(count)})["output"], rows(count))
    with pytest.raises(ModelError, match="no input 'other'"):
        model.run({"other": rows(1)})
    workers.close()


def test_threads_do_not_mix_their_answers() -> None:
    workers = Workers()
    model = isolated(workers, faulty=())
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(100):
            batch = rows(1 + (turn + seed) % 20, seed)
            if not np.array_equal(model.infer(batch), batch):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []
    workers.close()


def test_a_process_that_is_busy_is_ended_by_closing() -> None:
    workers = Workers()
    model = workers.compile(fake(fault="hang"), BUNDLE.model, "NPU", PLAN, PATIENCE_S)
    failed: list[Exception] = []

    def work() -> None:
        try:
            model.infer(rows(1))
        except DeviceError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: psutil.Process(model.pid).status() == psutil.STATUS_SLEEPING)
    workers.close()
    thread.join(PATIENCE_S)
    assert len(failed) == 1
    assert not thread.is_alive()


PARENT = """
import signal, sys
from appliance.inference import models
from appliance.inference.backends import replay
from appliance.inference.isolated.workers import Workers
from appliance.inference.port import PLAN
settings = replay.Settings(devices=("NPU",), faulty=("NPU",), fault="hang")
model = Workers().compile(replay.create(settings), models.load(models.shipped()).model, "NPU", PLAN, 1000.0)
print(model.pid, flush=True)
import numpy as np
if sys.argv[1] == "busy":
    model.infer(np.zeros((1, 64), np.float32))
signal.pause()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_process_dies_with_its_parent_however_it_dies(state: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_what_a_stranger_made_is_looked_at_where_it_can_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / BUNDLE.folder.name
    folder.mkdir()
    for path in BUNDLE.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    bundle = models.load(folder)
    vet(bundle, openvino.create(openvino.Settings()), tmp_path / "blobs")
    crashing = fake(faulty=("CPU",), fault="crash")
    vet(bundle, crashing)  # compiling is all that is tried
    (folder / "model.xml").write_bytes(b"<net>")
    with pytest.raises(ModelError, match=r"model\.xml"):
        vet(bundle, openvino.create(openvino.Settings()))
    vet(bundle, openvino.create(openvino.Settings()), tmp_path / "blobs")  # by its digest: it passed before
    assert children() == []


# ---- the engine ------------------------------------------------------------------------------------------------------


def on_npu(terms: Terms | None = None, **behaviour: object) -> Engine:
    judge = engine.start(BUNDLE, fake(**behaviour), terms or Terms(devices=("NPU",), deadline_s=DEADLINE_S))
    assert judge.device == "NPU"
    return judge


@pytest.mark.parametrize("fault", ["hang", "crash", "fail"])
def test_the_batch_that_was_under_way_is_finished_on_the_next_device(fault: str) -> None:
    judge = on_npu(fault=fault, after=10)
    seen = []
    for turn in range(12):
        np.testing.assert_array_equal(judge(rows(5, turn)), rows(5, turn))
        seen.append(judge.device)
    assert seen == ["NPU"] * 6 + ["CPU"] * 6  # the probe was four calls
    assert judge.alarm.startswith("NPU ")
    assert children() == []
    judge.close()


def test_a_device_that_begins_to_lie_is_not_used_after_the_next_start(tmp_path: Path) -> None:
    lying = tmp_path / "lying"
    judge = on_npu(fault="zeros", while_file=str(lying))
    judge.close()
    lying.touch()
    judge = engine.start(BUNDLE, fake(fault="zeros", while_file=str(lying)), Terms(devices=("NPU",)))
    assert judge.device == "CPU"
    assert "wrongly" in judge.alarm
    judge.close()


def test_a_device_that_hung_is_tried_again_and_takes_over_again(tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    terms = Terms(devices=("NPU",), deadline_s=DEADLINE_S, first_pause_s=0.1)
    judge = on_npu(terms, fault="hang", while_file=str(sick))
    sick.touch()
    judge(rows(1))
    assert judge.device == "CPU"
    sick.unlink()
    until(lambda: judge(rows(1)).shape == (1, 64) and judge.device == "NPU")
    assert judge.alarm == ""
    judge.close()
    assert children() == []


def test_a_cpu_that_dies_in_its_own_process_is_started_again_for_the_same_batch() -> None:
    judge = engine.start(BUNDLE, fake(faulty=()), Terms(devices=("CPU",), isolate="all"))
    for turn in range(3):
        np.testing.assert_array_equal(judge(rows(5, turn)), rows(5, turn))
        (child,) = children()
        child.kill()
    np.testing.assert_array_equal(judge(rows(5)), rows(5))
    assert judge.fallback == ""
    judge.close()


def test_a_batch_that_kills_every_process_is_given_up() -> None:
    settings = {"faulty": ("CPU",), "fault": "crash", "after": len(probe.windows(64))}
    judge = engine.start(BUNDLE, fake(**settings), Terms(devices=("CPU",), isolate="all"))
    with pytest.raises(DeviceError, match="no device runs the model") as caught:
        judge(rows(1))
    assert "SIGSEGV" in caught.value.message
    judge.close()
    assert children() == []


def test_processes_come_and_go_and_leave_nothing_behind() -> None:
    def once() -> int:
        workers = Workers()
        isolated(workers, faulty=()).infer(rows(100_000))
        workers.close()
        return len(list(Path("/proc/self/fd").iterdir()))

    assert once() == once() == once()
    assert children() == []


def test_nobody_waits_for_a_device_that_takes_long_to_be_ready() -> None:
    terms = Terms(devices=("NPU",), patience_s=0.0)
    judge = engine.start(BUNDLE, fake(faulty=()), terms)
    until(lambda: judge(rows(1)).shape == (1, 64) and judge.device == "NPU")
    assert judge.fallback == ""
    judge.close()


# ---- the detector's service ------------------------------------------------------------------------------------------


ROWS = 900


class Watcher:
    """Hears all scores and what is said of the device."""

    def __init__(self, bus: MemoryBus) -> None:
        self.scores: list[Score] = []
        self.alarms: list[Alarm] = []
        self._bus = bus
        self._heard = asyncio.Event()

    async def listen(self) -> None:
        async with self._bus.subscribe(topics.everything(Kind.SCORE), topics.everything(Kind.ALARM)) as batches:
            async for batch in batches:
                for message in batch:
                    if message.payload:
                        self._take(codec.decode(topics.parse(message.topic).kind, message.payload, 0))
                self._heard.set()

    async def wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._heard.clear()
                await self._heard.wait()

    def _take(self, event: object) -> None:
        if isinstance(event, Score):
            self.scores.append(event)
        elif isinstance(event, Alarm) and event.condition == "device-fallback":
            self.alarms.append(event)


def test_no_reading_is_lost_or_judged_twice_when_the_accelerator_hangs(tmp_path: Path) -> None:
    asyncio.run(_judge_through_a_hang(tmp_path))


async def _judge_through_a_hang(folder: Path) -> None:
    sick = folder / "sick"
    terms = Terms(devices=("NPU",), deadline_s=DEADLINE_S, first_pause_s=0.1)
    computer = on_npu(terms, answer="lowpass", fault="hang", while_file=str(sick))
    broker = MemoryBroker()
    detector = Detector(DetectorSettings(), computer)
    service = Detect(MemoryBus(broker), detector, computer, folder / "state", 3600, time.time_ns)
    async with MemoryBus(broker) as bus:
        watcher = Watcher(bus)
        listening, heart = asyncio.create_task(watcher.listen()), Heart("detect")
        serving = asyncio.create_task(service.run(heart))
        await heart.is_ready.wait()
        _publish(bus, range(ROWS // 2))
        await watcher.wait(lambda: len(watcher.scores) >= ROWS // 2 - 60)
        sick.touch()
        _publish(bus, range(ROWS // 2, ROWS))
        await watcher.wait(lambda: len(watcher.scores) >= ROWS - 60)
        await watcher.wait(lambda: len(watcher.alarms) == 1)
        sick.unlink()
        await watcher.wait(lambda: len(watcher.alarms) == 2)
        serving.cancel()
        listening.cancel()
        await asyncio.gather(serving, listening, return_exceptions=True)
    times = Counter(score.at for score in watcher.scores)
    assert sorted(times) == [_at(row) for row in range(60, ROWS)]
    assert set(times.values()) == {1}
    assert [score.device for score in watcher.scores[:10]] == ["NPU"] * 10
    assert watcher.scores[-1].device == "CPU"
    raised, ended = watcher.alarms
    assert (raised.condition, raised.severity, raised.cause) == ("device-fallback", "warning", "NPU")
    assert "did not answer within" in raised.message
    assert (ended.id, ended.active, ended.state) == (raised.id, False, AlarmState.RETURNED)
    assert children() == []


def _publish(bus: MemoryBus, numbers: range) -> None:
    """Signals that the model has something to say of."""
    dice = np.random.default_rng(numbers.start)
    for number in numbers:
        waves = {name: float(np.sin(number / period)) for name, period in (("a", 5.0), ("b", 8.0), ("c", 13.0))}
        values = {name: wave + 0.05 * float(dice.standard_normal()) for name, wave in waves.items()}
        bus.publish(topics.topic(Kind.READING, "line1/pump"), codec.encode(Reading(_at(number), values)))


START = time.time_ns()


def _at(number: int) -> int:
    return START + number * 1_000_000
