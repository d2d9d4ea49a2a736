"""From a bundle and what is known of the devices to something that can be called: `start(...)(windows)`.

    order the devices by the configuration's word
    for each of them: compile, probe (one inference, compared with the CPU's answer)
    the first that passes computes; when it fails later, the next one computes the same batch

A slower device than the one that was wished for is never silent: `Engine.fallback` says which failed and why.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from appliance.errors import DeviceError, ModelError
from appliance.inference.models import Bundle
from appliance.inference.port import Backend, Model, Tensor

STRENGTH = ("NPU", "GPU", "CPU")  # what `auto` tries, strongest first
REFERENCE = "CPU"
PROBE_ROWS = 4
# Accelerators compute in 16 bits: 10 bits of mantissa through a few layers stay well within this share of the answer's
# largest value; a wrong layout, a driver that returns zeros or a model compiled badly do not.
PROBE_TOLERANCE = 0.05


class Fact(Protocol):
    """What the engine needs to know of a device; `hardware.accelerators.Accelerator` has it."""

    @property
    def device(self) -> str: ...  # OpenVINO's name: CPU, GPU, GPU.1, NPU

    @property
    def present(self) -> bool: ...  # the hardware is there, usable or not

    @property
    def reason(self) -> str: ...  # why it cannot be used; empty where it can


def start(bundle: Bundle, backend: Backend, wish: str = "auto", facts: Sequence[Fact] = ()) -> "Engine":
    """The bundle's model on the best device. `wish` is the configuration's word: auto, CPU, GPU or NPU.

    A device without a fact is tried. ModelError where the bundle's files or shapes are refused; DeviceError where not
    even the CPU runs it.
    """
    return Engine(bundle, backend, _order(wish, facts))


class Engine:
    """Reconstructs windows: called with [n, window] float32, any n, it returns [n, window] float32.

    `name` and `version` are the model's, `device` the one that computes now, `fallback` empty or why it is not the one
    that was wished for. Safe from several threads, as its Model is.
    """

    def __init__(self, bundle: Bundle, backend: Backend, candidates: Iterable[tuple[str, str]]) -> None:
        self.window, self.name, self.version = _window(bundle), bundle.card.name, bundle.card.version
        self.fallback = ""
        self._bundle, self._backend = bundle, backend
        self._lock = threading.Lock()
        self._candidates: Iterator[tuple[str, str]] = iter(candidates)
        self._model = self._next()
        self.device = self._model.device

    def __call__(self, windows: Tensor) -> Tensor:
        while True:
            model = self._model
            try:
                return model.infer(windows)
            except DeviceError as error:
                self._step_down(model, error)

    def _step_down(self, failed: Model, error: DeviceError) -> None:
        with self._lock:
            if self._model is not failed:
                return  # another thread was here first
            self._excuse(error.message)
            self._model = self._next()
            self.device = self._model.device

    def _next(self) -> Model:
        """The next candidate that compiles and passes its probe."""
        for device, reason in self._candidates:
            if reason:
                self._excuse(f"{device}: {reason}")
                continue
            try:
                model = self._backend.compile(self._bundle.model, device)
                self._probe(model, device)
                return model
            except DeviceError as error:
                self._excuse(error.message)
        raise DeviceError(
            f"no device runs the model {self.name} {self.version} ({self.fallback})", "See `millwright doctor`."
        )

    def _probe(self, model: Model, device: str) -> None:
        """DeviceError where the device's answers to known inputs are not the CPU's."""
        answer = self._answers(model)
        if device == REFERENCE:
            return
        expected = self._answers(self._backend.compile(self._bundle.model, REFERENCE))
        off = float(np.max(np.abs(answer - expected))) / max(float(np.max(np.abs(expected))), 1e-6)
        if off > PROBE_TOLERANCE:
            raise DeviceError(
                f"{device} answers its probe wrongly (off by {off:.0%} of the CPU's answer)", "Update its driver."
            )

    def _answers(self, model: Model) -> Tensor:
        """To the probe's windows, one by one: a backend then compiles for one row only."""
        windows = probe_windows(self.window)
        answers = np.concatenate([model.infer(row[None]) for row in windows])
        if answers.shape != windows.shape:
            raise ModelError(
                f"{self._bundle.model}: gives {answers.shape[1:]} for a window of {self.window}",
                "A reconstruction has the shape of its input.",
            )
        if not np.isfinite(answers).all():
            raise DeviceError(f"{model.device} answers its probe with what is no number", "Update its driver.")
        return answers

    def _excuse(self, why: str) -> None:
        self.fallback = f"{self.fallback}; {why}" if self.fallback else why


def probe_windows(window: int) -> Tensor:
    """[4, window]: a sine, a step, a slope and a beat, which no layer maps to nothing."""
    time = np.linspace(0.0, 1.0, window, dtype=np.float64)
    rows = [np.sin(12.0 * time), np.where(time < 0.5, -1.0, 1.0), 2.0 * time - 1.0, np.sin(40.0 * time) * time]
    return np.stack(rows).astype(np.float32)


def _order(wish: str, facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """Devices to try and the reason against each of them ("" is none). The CPU is always the last resort."""
    known = {fact.device: fact for fact in facts}
    if wish == "auto":
        devices = [device for kind in STRENGTH for device in _of_kind(kind, known)]
        wished = [device for device in devices if known[device].present]
    else:
        wished = _of_kind(wish, known) or [wish]
    found = [(device, known[device].reason if device in known else "") for device in wished if device != REFERENCE]
    return [*found, (REFERENCE, "")]


def _of_kind(kind: str, known: Iterable[str]) -> list[str]:
    return sorted(device for device in known if device.partition(".")[0] == kind)


def _window(bundle: Bundle) -> int:
    if bundle.card.task != "reconstruction" or not bundle.card.window:
        raise ModelError(
            f"{bundle.folder}: is a model for '{bundle.card.task}', not one that reconstructs windows",
            "Name another bundle in `detect.model`.",
        )
    return bundle.card.window
