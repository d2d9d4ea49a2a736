"""The model that the detector shall compute with, as the library's names move; and those that stand beside it.

stamp     another one when what is chosen may have changed; cheap
chosen    the bundle's folder
open      verified, compiled, measured: slow
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from appliance.errors import ModelError
from appliance.inference import models
from appliance.inference.comparison import Cost
from appliance.inference.library import Library
from appliance.inference.models import Bundle
from appliance.inference.port import Tensor


class Computer(Protocol):
    """A model that reconstructs windows, on a device: `engine.Engine`."""

    @property
    def window(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def fallback(self) -> str: ...

    @property
    def alarm(self) -> str: ...

    @property
    def slow(self) -> bool: ...

    def __call__(self, windows: Tensor) -> Tensor: ...

    def close(self) -> None: ...


class Runner:
    """An open model, and what it costs. It is what the detector calls."""

    def __init__(self, folder: Path, computer: Computer, memory_bytes: int = 0, opening_s: float = 0.0) -> None:
        self.folder, self.computer = folder, computer
        self.memory_bytes, self.opening_s = memory_bytes, opening_s
        self.window, self.name, self.version = computer.window, computer.name, computer.version
        self.seconds = 0.0  # of all calls
        self.cost = Cost()

    @property
    def bundle(self) -> str:
        """Its content hash."""
        return self.folder.name

    @property
    def device(self) -> str:
        return self.computer.device

    def __call__(self, windows: Tensor) -> Tensor:
        began = time.perf_counter()
        answer = self.computer(windows)
        took = time.perf_counter() - began
        self.seconds += took
        self.cost.add(len(windows), took)
        return answer

    def begin_cost(self) -> Cost:
        """Of the calls so far; it begins anew."""
        cost, self.cost = self.cost, Cost()
        return cost


class Choice:
    """`reference`: a name, whose current bundle is chosen; a version, a hash or a path stand still. Empty: the name of
    the model that is part of the program. `opened` makes a bundle compute."""

    def __init__(self, library: Library, reference: str, opened: Callable[[Bundle], Computer]) -> None:
        self.library, self.reference, self._opened = library, reference, opened

    @cached_property
    def name(self) -> str:
        """That is followed; empty where the choice stands still."""
        if not self.reference:
            return models.read_card(models.shipped()).name
        return "" if "/" in self.reference or "@" in self.reference else self.reference

    def stamp(self) -> tuple[int, ...]:
        return self.library.stamp()

    def chosen(self) -> Path:
        """ModelError where the library has none of that name."""
        if "/" in self.reference:
            return Path(self.reference)
        current = self.library.current(self.name) if self.name else None
        return current or self.library.find(self.reference or self.name).folder

    def folder(self, bundle: str) -> Path:
        """ModelError where the library does not have it."""
        return self.library.find(bundle).folder

    def open(self, folder: Path) -> Runner:
        """InferenceError says why it cannot compute."""
        began, before = time.perf_counter(), _resident_bytes()
        computer = self._opened(models.load(folder))
        return Runner(folder, computer, max(_resident_bytes() - before, 0), time.perf_counter() - began)

    def open_first(self) -> tuple[Runner, str]:
        """At the start: the chosen one, else what was used before it, else the one that is part of the program; and why
        it is not the chosen one. ModelError where the choice stands still and cannot be opened."""
        chosen = self.chosen()
        try:
            return self.open(chosen), ""
        except ModelError as error:
            for folder in self._standing(chosen):
                try:
                    return self.open(folder), f"{error.message}; the model before it computes"
                except ModelError:
                    continue
            raise

    def _standing(self, chosen: Path) -> list[Path]:
        found = []
        if self.name:
            with suppress(ModelError):
                found.append(self.library.previous(self.name).folder)
            if models.read_card(models.shipped()).name == self.name:
                found.append(models.shipped())
        return [folder for folder in found if folder != chosen]


def _resident_bytes() -> int:
    """Of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
