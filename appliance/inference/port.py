"""A backend compiles a model for a device; a model maps a batch to a batch.

One file a backend under `backends/`; the file's name is its name in the configuration. It has one `Settings` struct,
whose defaults run, and one `create(settings) -> Backend`.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]


class Model(Protocol):
    """A compiled model. `device` is the one it really runs on, never the one that was asked for."""

    device: str

    def infer(self, batch: Tensor) -> Tensor:
        """[n, ...] -> [n, ...], any n; the answer is the caller's own. DeviceError when the device fails.

        Safe from several threads, which wait for each other; the wait inside the runtime releases the interpreter.
        """


class Backend(Protocol):
    def compile(self, path: Path, device: str) -> Model:
        """ModelError when the file is refused, DeviceError when the device cannot run it."""
