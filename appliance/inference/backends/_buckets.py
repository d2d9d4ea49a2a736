"""A model for every number of rows out of runners that each take one shape.

Rows are padded to the next size ("bucket") that is compiled: on a small model a fixed shape costs less than half of
what a free one does. A bucket has one runner for each inference that may be under way at once; who finds none free
waits.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.port import Array, Spec

MAX_CHECKED = 1024  # combinations of input shapes that need not be checked again
MAX_SHAPES = 16  # combinations of input shapes that a model without rows is kept compiled for

Shapes = tuple[tuple[int, ...], ...]


class Runner(Protocol):
    """A model compiled for one shape of each input. One thread at a time."""

    def rows(self, batch: Array) -> Array:
        """Any number of rows up to its own; the answer is the caller's own. DeviceError."""

    def begin(self, batch: Array) -> None:
        """`rows` in two steps: other runners may work until `finish`."""

    def finish(self) -> Array: ...

    def run(self, given: Sequence[Array]) -> list[Array]:
        """All inputs, of exactly its shapes, to all outputs. DeviceError."""


Make = Callable[[Shapes], Sequence[Runner]]  # ModelError where the model does not take the shapes, DeviceError
Check = Callable[[Shapes], None]  # ModelError where the model does not take the shapes


class Bucketed:
    """The port's Model. `sizes`: numbers of rows that may be compiled, ascending; `streams`: runners of each;
    `per_shape`: `make` takes no free lengths; where it does, `check` is asked once for each combination of shapes."""

    def __init__(
        self,
        inputs: tuple[Spec, ...],
        outputs: tuple[Spec, ...],
        device: str,
        sizes: Sequence[int],
        make: Make,
        streams: int = 1,
        per_shape: bool = True,
        check: Check = lambda shapes: None,
    ) -> None:
        self.inputs, self.outputs, self.device = inputs, outputs, device
        self.per_shape = per_shape
        self._row = row = tensors.row_of(inputs, outputs)
        fixed = inputs[0].shape[0] if row is not None else -1
        self._sizes = (fixed,) if fixed > 0 else tuple(sizes)
        self._largest = self._sizes[-1]
        self._size_of = _smallest(self._sizes)
        self._make, self._alone = make, streams == 1
        self._buckets: dict[int, SimpleQueue[Runner]] = {}
        self._shaped: dict[Shapes, SimpleQueue[Runner]] = {}
        self._check = check
        self._checked = {tuple(spec.shape for spec in inputs)}
        self._making = threading.Lock()

    def try_out(self, eager: bool, rows: int = 1) -> None:
        """Compile (all sizes where eager) and infer `rows` once, so that a device that cannot run the model says so
        now."""
        if self._row is not None:
            for size in reversed(self._sizes) if eager else ():
                self._bucket(size)
            self.infer(np.zeros((rows, *self._row), self.inputs[0].dtype))
        elif all(-1 not in spec.shape for spec in self.inputs):
            self.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.inputs})

    def infer(self, batch: Array) -> Array:
        count = len(batch) if batch.ndim else 0
        if batch.shape[1:] != self._row:
            tensors.rows_fit(self._row, batch)
        if not 0 < count <= self._largest:
            return self._in_parts(batch)
        free = self._buckets.get(self._size_of[count]) or self._bucket(self._size_of[count])
        runner = free.get()
        try:
            return runner.rows(batch)
        finally:
            free.put(runner)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = tensors.ordered(self.inputs, inputs)
        free = self._for(tuple(tensor.shape for tensor in given))
        runner = free.get()
        try:
            answers = runner.run(given)
        finally:
            free.put(runner)
        return {spec.name: answer for spec, answer in zip(self.outputs, answers, strict=True)}

    def close(self) -> None:
        with self._making:
            self._buckets.clear()
            self._shaped.clear()

    def _in_parts(self, batch: Array) -> Array:
        parts = [batch[start : start + self._largest] for start in range(0, len(batch), self._largest)]
        if not parts:
            return self.infer(np.zeros((1, *batch.shape[1:]), batch.dtype))[:0]
        if self._alone:
            return np.concatenate([self.infer(part) for part in parts])
        return np.concatenate(self._at_once(parts))

    def _at_once(self, parts: Sequence[Array]) -> list[Array]:
        answers: list[Array] = []
        under_way: deque[tuple[SimpleQueue[Runner], Runner]] = deque()
        try:
            for part in parts:
                free = self._bucket(self._size_of[len(part)])
                runner = self._next(free, under_way, answers)
                under_way.append((free, runner))
                runner.begin(part)
            while under_way:
                _finish(under_way, answers)
        finally:
            for free, runner in under_way:  # only where one of them failed: the others end before they are used again
                with suppress(DeviceError):
                    runner.finish()
                free.put(runner)
        return answers

    def _next(
        self,
        free: "SimpleQueue[Runner]",
        under_way: "deque[tuple[SimpleQueue[Runner], Runner]]",
        answers: list[Array],
    ) -> Runner:
        """A free runner. Who holds some finishes them before they wait, so that no two wait for each other."""
        while under_way:
            try:
                return free.get_nowait()
            except Empty:
                _finish(under_way, answers)
        return free.get()

    def _bucket(self, size: int) -> "SimpleQueue[Runner]":
        found = self._buckets.get(size)
        if found is not None:
            return found
        with self._making:
            if size not in self._buckets:
                self._buckets[size] = _queue(self._made(((size, *self.inputs[0].shape[1:]),)))
            return self._buckets[size]

    def _for(self, shapes: Shapes) -> "SimpleQueue[Runner]":
        if not self.per_shape:
            self._fitting(shapes)
            shapes = tuple(spec.shape for spec in self.inputs)
        found = self._shaped.get(shapes)
        if found is not None:
            return found
        with self._making:
            while len(self._shaped) >= MAX_SHAPES:
                del self._shaped[next(iter(self._shaped))]
            self._shaped[shapes] = found = _queue(self._made(shapes))
            return found

    def _made(self, shapes: Shapes) -> Sequence[Runner]:
        try:
            return self._make(shapes)
        except (MemoryError, ValueError) as error:  # numpy's, of lengths that no machine has
            raise ModelError(f"tensors of shape {shapes} cannot be: {error}", "Choose a smaller model.") from None

    def _fitting(self, shapes: Shapes) -> None:
        if shapes in self._checked:
            return
        self._check(shapes)
        if len(self._checked) < MAX_CHECKED:
            self._checked.add(shapes)


def powers(largest: int, step: int = 2) -> list[int]:
    """1, 2, 4 ... up to the first that is no less than `largest`."""
    found = [1]
    while found[-1] < largest:
        found.append(found[-1] * step)
    return found


def _smallest(sizes: Sequence[int]) -> list[int]:
    """For each number of rows the smallest size that holds it."""
    found = [sizes[0]]
    for size in sizes:
        found += [size] * (size + 1 - len(found))
    return found


def _queue(runners: Sequence[Runner]) -> "SimpleQueue[Runner]":
    queue: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        queue.put(runner)
    return queue


def _finish(under_way: "deque[tuple[SimpleQueue[Runner], Runner]]", answers: list[Array]) -> None:
    free, runner = under_way[0]
    answers.append(runner.finish())
    under_way.popleft()
    free.put(runner)
