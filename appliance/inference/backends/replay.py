"""Answers without any runtime: the fake for tests, demonstrations and machines that OpenVINO does not support.

    [detect]
    backend = "replay"

It gives back its input, its input smoothed, or what was recorded in an .npz file (`inputs` [n, ...] and `outputs`
[n, ...], float32, row by row). Its devices, and which of them fail or answer wrongly, are settings.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from zipfile import BadZipFile

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.port import PLAN, Array, Plan, Spec, Tensor

LOWPASS_SAMPLES = 5
MAX_RECORDING = 256 * 1024 * 1024  # bytes


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is answered, and how the devices behave."""

    answer: Annotated[
        Literal["identity", "lowpass", "recording"],
        Meta(description="The input itself, its running mean over 5 samples, or what `file` holds for it."),
    ] = "lowpass"
    file: Annotated[str, Meta(description="The .npz file of `recording`.")] = ""
    devices: Annotated[tuple[str, ...], Meta(description="Devices that compile.")] = ("CPU",)
    faulty: Annotated[tuple[str, ...], Meta(description="Devices that show `fault`.")] = ()
    fault: Annotated[
        Literal["fail", "hang", "crash", "zeros", "wrong"],
        Meta(description="An error, no answer at all, the end of the process, zeros, or answers off by one."),
    ] = "fail"
    after: Annotated[int, Meta(ge=0, description="Calls that a faulty device answers well before.")] = 0
    while_file: Annotated[str, Meta(description="A file: faulty only while it is there. Empty: always.")] = ""
    delay_ms: Annotated[dict[str, float], Meta(description="What a call costs on a device; others: nothing.")] = {}


def create(settings: Settings) -> "Replay":
    return Replay(settings)


class Replay:
    name = "replay"
    version = "1"
    suffixes: tuple[str, ...] = (".xml", ".onnx", ".tflite")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def compile(self, path: Path, device: str, plan: Plan = PLAN) -> "Recorded":
        """The model's file must exist; nothing of it is read."""
        if not path.is_file():
            raise ModelError(f"{path}: cannot be read: no such file", "Copy the whole bundle again.")
        if device not in self.settings.devices:
            raise DeviceError(
                f"{device} is not one of the replayed devices", f"Use {', '.join(self.settings.devices)}."
            )
        return Recorded(self.settings, device)

    def ask(self, device: str, name: str) -> object:
        if device in self.settings.devices:
            return {"FULL_DEVICE_NAME": f"replayed {device}", "AVAILABLE_DEVICES": ["0"]}.get(name, "")
        raise RuntimeError(f"{device} is not one of the replayed devices")


class Recorded:
    """Plays the settings' answer."""

    per_shape = False
    inputs = (Spec("input", "float32", (-1, -1)),)
    outputs = (Spec("output", "float32", (-1, -1)),)

    def __init__(self, settings: Settings, device: str) -> None:
        self.device = device
        self._settings = settings
        self._delay_s = settings.delay_ms.get(device, 0.0) / 1000
        self._faulty, self._left = device in settings.faulty, settings.after
        self._rows = _recording(Path(settings.file)) if settings.answer == "recording" else {}

    def infer(self, batch: Tensor) -> Tensor:
        if self._delay_s:
            time.sleep(self._delay_s)
        found = self._played(batch)
        return self._spoiled(found) if self._faulty and self._fault_holds() else found

    def _played(self, batch: Tensor) -> Tensor:
        if self._settings.answer == "identity":
            return batch.astype(np.float32)
        if self._settings.answer == "lowpass":
            return _lowpass(batch)
        return np.stack([self._recorded(row) for row in batch]) if len(batch) else batch.copy()

    def _fault_holds(self) -> bool:
        if self._left:
            self._left -= 1
            return False
        return not self._settings.while_file or Path(self._settings.while_file).exists()

    def _spoiled(self, answer: Tensor) -> Tensor:
        match self._settings.fault:
            case "hang":
                while True:
                    signal.pause()
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "zeros":
                return np.zeros_like(answer)
            case "wrong":
                return answer + np.float32(1.0)
        raise DeviceError(f"{self.device} failed in an inference: the replay ends here", "It is a fake.")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"output": self.infer(tensors.ordered(self.inputs, inputs)[0])}

    def close(self) -> None:
        self._rows = {}

    def _recorded(self, row: Tensor) -> Tensor:
        found = self._rows.get(row.tobytes())
        if found is None:
            raise ModelError("the recording has no answer to this input", "Record the inputs that are played.")
        return found


def _lowpass(batch: Tensor) -> Tensor:
    """The mean of up to 5 samples that end at each one, along the last axis."""
    total = np.cumsum(batch, axis=-1, dtype=np.float64)
    before = np.zeros_like(total)
    before[..., LOWPASS_SAMPLES:] = total[..., :-LOWPASS_SAMPLES]
    counts = np.minimum(np.arange(1, batch.shape[-1] + 1), LOWPASS_SAMPLES)
    return ((total - before) / counts).astype(np.float32)


def _recording(path: Path) -> dict[bytes, Tensor]:
    try:
        if path.stat().st_size > MAX_RECORDING:
            raise ModelError(f"{path}: is too large", f"At most {MAX_RECORDING:,} bytes are read.")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            inputs, outputs = held["inputs"].astype(np.float32), held["outputs"].astype(np.float32)
    except (OSError, EOFError, BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: is no recording: {error}", "Write `inputs` and `outputs` with numpy.savez."
        ) from None
    if len(inputs) != len(outputs):
        raise ModelError(
            f"{path}: {len(inputs)} inputs but {len(outputs)} outputs", "Record one output for each input."
        )
    return {row.tobytes(): answer for row, answer in zip(inputs, outputs, strict=True)}
