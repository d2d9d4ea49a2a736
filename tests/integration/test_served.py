"""The infer service beside detect, over a bus in memory: following the library, falling back, refusing when busy."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.config.schema import Infer as Settings
from appliance.errors import ModelError, RequestError
from appliance.events import codec, topics
from appliance.events.schema import Alarm, Command, CommandState, Kind, State
from appliance.inference import engine, models
from appliance.inference.backends import replay
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.library import Library
from appliance.inference.models import Bundle
from appliance.inference.policy import Terms
from appliance.inference.port import Array, Spec
from appliance.inference.serving import Repertoire
from appliance.services import commands
from appliance.services.detect import Detect
from appliance.services.infer import Infer
from tests import bundles

PATIENCE_S = 30
NOW = 1_700_000_000_000_000_000


class Pulse:
    def ready(self) -> None:
        pass

    def beat(self) -> None:
        pass


class Computed(NamedTuple):
    outputs: dict[str, Array]
    device: str


class Gate:
    """A computer that answers when it is let."""

    inputs, outputs = (Spec("x", "float32", (-1, 4)),), (Spec("scores", "float32", (-1, 3)),)
    device, fallback, alarm = "CPU", "", ""

    def __init__(self, bundle: Bundle) -> None:
        self.entered, self.open, self.closed = threading.Semaphore(0), threading.Event(), threading.Event()

    def ask(self, inputs: Mapping[str, Array]) -> Computed:
        self.entered.release()
        assert self.open.wait(PATIENCE_S)
        assert not self.closed.is_set()
        return Computed({"scores": np.zeros((len(inputs["x"]), 3), np.float32)}, "CPU")

    def ask_rows(self, batch: Array) -> tuple[Array, str]:
        raise AssertionError("the card does not say that rows may be split")

    def close(self) -> None:
        self.closed.set()


class Rig:
    """The service over a bus in memory; `gates` are the models that were opened."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.broker, self.gates = MemoryBroker(), []
        self.library = Library(folder / "models")
        self.library.add(bundles.classifier(folder / "toy"))
        self.repertoire = Repertoire(self.library, self.opened)
        self.service = Infer(MemoryBus(self.broker), self.repertoire, Settings(**settings), lambda: NOW)

    def opened(self, bundle: Bundle) -> Gate:
        self.gates.append(Gate(bundle))
        return self.gates[-1]

    def play(self, scenario: Callable[[MemoryBus], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(PATIENCE_S), MemoryBus(self.broker) as bus:
                running = asyncio.create_task(self.service.run(Pulse()))
                await asyncio.to_thread(until, lambda: bool(self.repertoire.loaded))
                try:
                    await scenario(bus)
                finally:
                    for gate in self.gates:
                        gate.open.set()
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)

        asyncio.run(main())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def run(bus: MemoryBus) -> "asyncio.Task[Command]":
    args = {"model": "toy", "inputs": {"x": [[0, 0, 0, 0]]}}
    return asyncio.create_task(commands.ask(bus, "infer", "run", args, "test", PATIENCE_S, lambda: NOW))


def test_more_than_may_wait_is_refused_and_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, threads=1, max_waiting=2)

    async def scenario(bus: MemoryBus) -> None:
        asked = [run(bus) for _ in range(3)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        [refused] = [task.result() for task in done]
        assert "2 requests wait already" in refused.reason
        rig.gates[0].open.set()
        states = [(await task).state for task in asked]
        assert sorted(states) == [CommandState.FAILED, CommandState.SUCCESSFUL, CommandState.SUCCESSFUL]

    rig.play(scenario)
    state = codec.decode(Kind.STATE, rig.broker.retained[topics.state("infer")].payload, NOW)
    assert isinstance(state, State)
    assert (state.received, state.processed, state.dropped, state.online) == (3, 2, {"busy": 1}, False)


def test_what_takes_too_long_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path, timeout_s=0.1)

    async def scenario(bus: MemoryBus) -> None:
        answer = await run(bus)
        assert answer.state is CommandState.FAILED
        assert "no answer within 0.1 s" in answer.reason

    rig.play(scenario)


def test_a_model_that_is_let_go_of_is_closed_when_its_last_call_has_ended(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scenario(bus: MemoryBus) -> None:
        asked = run(bus)
        await asyncio.to_thread(rig.gates[0].entered.acquire, True, PATIENCE_S)
        await asyncio.to_thread(rig.repertoire.unload, "toy")
        assert not rig.gates[0].closed.is_set()
        with pytest.raises(ModelError, match="not loaded"):
            rig.repertoire.get("toy")
        rig.gates[0].open.set()
        assert (await asked).state is CommandState.SUCCESSFUL
        assert rig.gates[0].closed.is_set()

    rig.play(scenario)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(tmp_path: Path) -> None:
    library = Library(tmp_path / "models")
    old, _ = library.add(bundles.classifier(tmp_path / "old"))
    new, _ = library.add(bundles.classifier(tmp_path / "new", version="2.0.0", factor=2.0))
    repertoire = Repertoire(library, Gate)
    repertoire.follow()
    (new.folder / "model.bin").write_bytes(b"\0" * 48)
    library.use(new)
    repertoire.follow()
    assert repertoire.get("toy").version == "1.0.0"
    assert "its content is not what the card promises" in repertoire.problems["toy"]
    library.use(old)
    repertoire.follow()
    assert repertoire.problems == {}


def test_no_more_models_are_loaded_than_may_be(tmp_path: Path) -> None:
    library = Library(tmp_path / "models")
    for name in ("a", "b", "c"):
        library.add(bundles.classifier(tmp_path / name, name))
    repertoire = Repertoire(library, Gate, most=2)
    repertoire.follow()
    assert [one.name for one in repertoire.loaded] == ["a", "b"]
    with pytest.raises(ModelError, match="2 models are loaded already") as caught:
        repertoire.get("c")
    assert "infer.max_loaded" in caught.value.remedy
    repertoire.unload("a")
    repertoire.follow()
    assert [one.name for one in repertoire.loaded] == ["b", "c"]


def test_only_what_is_wanted_is_loaded(tmp_path: Path) -> None:
    library = Library(tmp_path / "models")
    library.add(bundles.classifier(tmp_path / "a", "a"))
    library.add(bundles.classifier(tmp_path / "b", "b"))
    repertoire = Repertoire(library, Gate, wanted=["b@1.0.0", "c"])
    repertoire.follow()
    assert [one.name for one in repertoire.loaded] == ["b"]
    assert "there is no model 'c'" in repertoire.problems["c"]


def test_a_served_model_that_falls_back_raises_an_alarm(tmp_path: Path) -> None:
    """Through the bus: infer tells of it, detect owns the alarm."""
    bundle = models.load(models.shipped())
    broker = MemoryBroker()
    backend = replay.create(replay.Settings(devices=("CPU",)))
    terms = Terms(devices=("NPU",), isolate="none")
    computer = engine.start(bundle, backend, terms)
    assert computer.alarm
    repertoire = Repertoire(Library(tmp_path / "models", models.shipped()), lambda _: Renamed(computer, bundle))
    infer = Infer(MemoryBus(broker), repertoire, Settings(), lambda: NOW)
    plain = engine.start(bundle, backend, Terms(isolate="none"))
    detect = Detect(
        MemoryBus(broker), Detector(DetectorSettings(1, 10, 10), plain), plain, tmp_path / "state", 30, lambda: NOW
    )

    async def main() -> tuple[str, Alarm]:
        async with asyncio.timeout(PATIENCE_S), MemoryBus(broker) as bus:
            services = [asyncio.create_task(service.run(Pulse())) for service in (infer, detect)]
            async with bus.subscribe(topics.everything(Kind.ALARM), qos=1) as batches:
                async for batch in batches:
                    for task in services:
                        task.cancel()
                    await asyncio.gather(*services, return_exceptions=True)
                    alarm = codec.decode(Kind.ALARM, batch[0].payload, NOW)
                    assert isinstance(alarm, Alarm)
                    return batch[0].topic, alarm
        raise AssertionError

    topic, alarm = asyncio.run(main())
    assert "millwright/infer" in topic
    assert (alarm.condition, alarm.active) == ("device-fallback", True)
    assert bundle.card.name in alarm.message
    assert "NPU" in alarm.message


class Renamed:
    """An engine over the fake backend, whose tensors have names of its own, under the names of a card."""

    def __init__(self, computer: engine.Engine, bundle: Bundle) -> None:
        self._computer = computer
        self.inputs = [Spec(port.name, port.dtype, tuple(port.shape)) for port in bundle.card.inputs]
        self.outputs = [Spec(port.name, port.dtype, tuple(port.shape)) for port in bundle.card.outputs]

    device = property(lambda self: self._computer.device)
    fallback = property(lambda self: self._computer.fallback)
    alarm = property(lambda self: self._computer.alarm)

    def ask(self, inputs: Mapping[str, Array]) -> Computed:
        raise RequestError(500, "nobody asks")

    def ask_rows(self, batch: Array) -> tuple[Array, str]:
        return self._computer.ask_rows(batch)

    def close(self) -> None:
        self._computer.close()


CARRIED = """
import sys
from pathlib import Path
from appliance import assembly
from appliance.config.load import load

assembly.build(*load(Path(sys.argv[1])), [sys.argv[2]])
heavy = ("h11", "nncf", "appliance.services.http", "appliance.services.kserve", "appliance.inference.serving")
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("service", ["detect", "ingest", "record"])
def test_the_other_services_carry_nothing_of_it(tmp_path: Path, service: str) -> None:
    (tmp_path / "box.toml").write_text(f'[paths]\nstate = "{tmp_path}"\nrun = "{tmp_path}"\n[infer]\nport = 1\n')
    words = [sys.executable, "-c", CARRIED, str(tmp_path / "box.toml"), service]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
