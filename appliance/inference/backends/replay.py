"""Answers without any runtime: the fake for tests, demonstrations and machines that OpenVINO does not support.

    [detect]
    backend = "replay"

It gives back its input, its input smoothed, or what was recorded in an .npz file (`inputs` [n, ...] and `outputs`
[n, ...], float32, row by row). Its devices, and which of them fail or answer wrongly, are settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from zipfile import BadZipFile

import numpy as np
from msgspec import Meta, Struct

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.port import Array, Spec, Tensor

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
    wrong: Annotated[tuple[str, ...], Meta(description="Devices whose answers are off by one.")] = ()
    calls: Annotated[int, Meta(ge=0, description="Every device but the CPU fails after so many; 0: none fails.")] = 0


def create(settings: Settings) -> "Replay":
    return Replay(settings)


class Replay:
    suffixes = (".xml", ".onnx", ".tflite")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def compile(self, path: Path, device: str) -> "Recorded":
        """The model's file must exist; nothing of it is read."""
        if not path.is_file():
            raise ModelError(f"{path}: cannot be read: no such file", "Copy the whole bundle again.")
        if device not in self._settings.devices:
            raise DeviceError(
                f"{device} is not one of the replayed devices", f"Use {', '.join(self._settings.devices)}."
            )
        return Recorded(self._settings, device)


class Recorded:
    """Plays the settings' answer."""

    inputs = (Spec("input", "float32", (-1, -1)),)
    outputs = (Spec("output", "float32", (-1, -1)),)

    def __init__(self, settings: Settings, device: str) -> None:
        self.device = device
        self._answer = settings.answer
        self._offset = np.float32(1.0 if device in settings.wrong else 0.0)
        self._left = settings.calls if settings.calls and device != "CPU" else -1
        self._rows = _recording(Path(settings.file)) if settings.answer == "recording" else {}

    def infer(self, batch: Tensor) -> Tensor:
        if self._left == 0:
            raise DeviceError(f"{self.device} failed in an inference: the replay ends here", "It is a fake.")
        self._left -= 1
        if self._answer == "identity":
            found = batch.astype(np.float32)
        elif self._answer == "lowpass":
            found = _lowpass(batch)
        else:
            found = np.stack([self._recorded(row) for row in batch]) if len(batch) else batch.copy()
        return found + self._offset

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
