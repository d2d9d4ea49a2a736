"""Everything that a device is asked before it is trusted, told instead of decided: for a person before new hardware."""

import tempfile
import time
from typing import NamedTuple

import numpy as np

from appliance.inference import benchmark, probe
from appliance.inference.isolated.workers import Workers
from appliance.inference.models import Bundle
from appliance.inference.policy import CPU
from appliance.inference.port import Array, Backend, Model, Plan

MANY = 16  # rows
BLOCK = 4096  # rows of a call of the measurement of throughput
DEADLINE_S = 10.0  # of one call
BUDGET = 1 << 30  # bytes of what is compiled, for as long as it takes


class Checkup(NamedTuple):
    """Of one model on one device. Times in seconds."""

    ran_on: str  # what the runtime says it computes on
    compile_s: float  # all batch sizes, the process's start included
    again_s: float  # the same, from what was compiled
    off: float  # from the CPU's answers, as a share of their largest value
    one_s: float  # a call with one row
    many_s: float  # a call with MANY rows
    rows_per_s: float


class Examiner:
    """Examines devices one after the other, each in a process of its own; their answers are compared with the CPU's."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle, self._backend = bundle, backend
        self._window = bundle.card.window
        self._workers = Workers()
        self._expected: probe.Answers | None = None

    def examine(self, device: str) -> Checkup:
        """DeviceError where it does not compile, compute in time, or agree with the CPU; ModelError of the file."""
        expected = self._reference()
        with tempfile.TemporaryDirectory(prefix="millwright-") as folder:
            plan = Plan(eager=True, blobs=folder, blobs_bytes=BUDGET, identity=device)
            model, compile_s = self._compiled(device, plan)
            off = probe.compare(device, probe.answers(model, self._window), expected)
            one, many = self._call_s(model, 1), self._call_s(model, MANY)
            ran_on = model.device
            model.close()
            model, again_s = self._compiled(device, plan)
            model.close()
        model, _ = self._compiled(device, Plan(streams=0, eager=True))
        block_s = self._call_s(model, BLOCK)
        model.close()
        return Checkup(ran_on, compile_s, again_s, off, one, many, BLOCK / block_s)

    def close(self) -> None:
        self._workers.close()

    def _compiled(self, device: str, plan: Plan) -> tuple[Model, float]:
        began = time.perf_counter()
        model = self._workers.compile(self._backend, self._bundle.model, device, plan, DEADLINE_S)
        return model, time.perf_counter() - began

    def _reference(self) -> probe.Answers:
        if self._expected is None:
            model = self._backend.compile(self._bundle.model, CPU)
            self._expected = probe.answers(model, self._window)
            model.close()
        return self._expected

    def _call_s(self, model: Model, count: int) -> float:
        inputs = self._inputs(model, count)
        if self._window:
            (rows,) = inputs.values()
            return probe.median_s(lambda: model.infer(rows))
        return probe.median_s(lambda: model.run(inputs))

    def _inputs(self, model: Model, count: int) -> dict[str, Array]:
        if self._window:
            return {model.inputs[0].name: np.resize(probe.windows(self._window), (count, self._window))}
        return benchmark.inputs_for(model, count)
