"""Starts processes that compute, asks them, and kills those that do not answer in time."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from appliance.errors import DeviceError, ModelError
from appliance.inference import tensors
from appliance.inference.isolated import wire
from appliance.inference.isolated.wire import Answer, Ask, Call, Compile, Memory, Need, Ready, Refused, Slot, Value
from appliance.inference.port import PLAN, Array, Backend, Plan

COMPILE_S = 1200.0  # an NPU's first compilation takes minutes
ASK_S = 30.0  # loads the device's plugin
REAP_S = 1.0  # a killed process ends at once, unless its driver holds it in the kernel
FIRST_ROOM = 64 * 1024  # bytes
MAX_KEYS = 16  # combinations of shapes that a model is kept compiled for
START = (
    "import sys; sys.path[:] = sys.argv[4:]; from appliance.inference.isolated.worker import main; "
    "main(*map(int, sys.argv[1:4]))"
)
LOOK = "`millwright doctor accelerators` looks at the device."


class LostError(DeviceError):
    """The process is gone: it crashed, or it was killed because it did not answer."""


class Workers:
    """All processes of one owner, so that closing it ends them, those that are busy included."""

    def __init__(self) -> None:
        self._known: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def compile(
        self,
        backend: Backend,
        path: Path,
        device: str,
        plan: Plan = PLAN,
        deadline_s: float = 2.0,
        compile_s: float = COMPILE_S,
        memory: int = 0,
    ) -> "Isolated":
        """The model in a process of its own, which gets `compile_s` to compile, `deadline_s` for each call and `memory`
        bytes of address space (0: any). ModelError when the file is refused, DeviceError when the device cannot run it,
        LostError when the process ends.
        """
        worker = self._started(device, memory)
        try:
            settings = msgspec.to_builtins(backend.settings)
            reply = worker.ask(Compile(backend.name, settings, str(path), device, plan), compile_s)
        except BaseException:
            worker.close()
            raise
        if not isinstance(reply, Ready):
            raise worker.lost(f"answered with {type(reply).__name__}")
        return Isolated(worker, reply, deadline_s)

    def asking(self, backend: Backend) -> Callable[[str, str], object]:
        """`backend.ask`, for what is no CPU by a process: asking loads a device's driver, which may hang or crash."""
        settings = msgspec.to_builtins(backend.settings)
        held: list[Worker] = []

        def ask(device: str, name: str) -> object:
            if device == "CPU":
                return backend.ask(device, name)
            try:
                if not held or held[-1].gone:
                    held.append(self._started(device, 0))
                reply = held[-1].ask(Ask(backend.name, settings, device, name), ASK_S)
            except DeviceError as error:
                raise RuntimeError(error.message) from None
            return reply.value if isinstance(reply, Value) else None

        return ask

    def close(self) -> None:
        with self._lock:
            self._closed = True
            known = list(self._known)
        for worker in known:
            worker.close()

    def _started(self, device: str, memory: int) -> "Worker":
        with self._lock:
            if self._closed:
                raise DeviceError(f"{device} is not started: it is the end", "Nothing is to be done.")
            worker = Worker(device, memory, self._forget)
            self._known.add(worker)
            return worker

    def _forget(self, worker: "Worker") -> None:
        with self._lock:
            self._known.discard(worker)


class Worker:
    """One process. `ask` from one thread at a time; `close` from any."""

    def __init__(self, device: str, memory: int = 0, forget: "Callable[[Worker], None]" = lambda worker: None) -> None:
        self._device, self._forget = device, forget
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held, self._lifeline = os.pipe()
        self._channel = ours
        self._closing = threading.Lock()
        self._closed = False
        with theirs:
            numbers = (str(theirs.fileno()), str(held), str(memory))
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, *numbers, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=2,  # ours may be read by a program
                pass_fds=(theirs.fileno(), held),
                process_group=0,  # Ctrl-C is for us: we end it
            )
        os.close(held)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def gone(self) -> bool:
        return self._closed

    def ask(self, question: wire.Question, deadline_s: float) -> wire.Reply:
        """ModelError or DeviceError as the process says; DeviceError when it dies or is late, and then it is gone."""
        try:
            self._channel.send(wire.encode(question))
            return self._wait(deadline_s)
        except TimeoutError:
            raise self.lost(f"did not answer within {deadline_s:g} s") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise self.lost(f"cannot be spoken to ({error})") from None

    def give_room(self, leaving: bool, size: int) -> Memory:
        try:
            return wire.send_room(self._channel, leaving, max(FIRST_ROOM, 1 << (size - 1).bit_length()))
        except OSError as error:
            raise self.lost(f"cannot be spoken to ({error})") from None

    def answer(self, deadline_s: float) -> wire.Reply:
        """What it says next."""
        try:
            return self._wait(deadline_s)
        except TimeoutError:
            raise self.lost(f"did not answer within {deadline_s:g} s") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise self.lost(f"cannot be spoken to ({error})") from None

    def lost(self, how: str) -> LostError:
        """Kill it; the error that says why."""
        died = self._end()
        return LostError(f"{self._device} {died or f'{how}; its process was killed'}", LOOK)

    def close(self) -> None:
        self._end()

    def _wait(self, deadline_s: float) -> wire.Reply:
        self._channel.settimeout(deadline_s)
        data = self._channel.recv(wire.LONGEST)
        if not data:
            raise ConnectionError("it is gone")
        reply: wire.Reply = wire.decode_reply(data)
        if isinstance(reply, Refused):
            raise (ModelError if reply.of_model else DeviceError)(reply.message, reply.remedy)
        return reply

    def _end(self) -> str:
        """How it had died by itself; empty where we killed it."""
        with self._closing:
            if self._closed:
                return ""
            self._closed = True
            died = self._how_it_died()
            self._process.kill()
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it
            os.close(self._lifeline)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(REAP_S)
            self._channel.close()
            self._forget(self)
            return died

    def _how_it_died(self) -> str:
        """A process that closed its socket is given a moment to be seen as ended."""
        try:
            self._channel.settimeout(0)
            gone = self._channel.recv(1, socket.MSG_PEEK) == b""
            code = self._process.wait(REAP_S) if gone else None
        except (OSError, subprocess.TimeoutExpired):
            code = self._process.poll()
        if code is None:
            return ""
        if code < 0:
            return f"crashed its process ({signal.Signals(-code).name})"
        return f"ended its process (exit code {code})"


class Isolated:
    """The port's Model, computed by a process."""

    def __init__(self, worker: Worker, ready: Ready, deadline_s: float) -> None:
        self.device = ready.device
        self.inputs, self.outputs = tuple(ready.inputs), tuple(ready.outputs)
        self._row = tensors.row_of(self.inputs, self.outputs)
        self._worker, self._deadline_s = worker, deadline_s
        self._entered = worker.give_room(False, FIRST_ROOM)
        self._left = worker.give_room(True, FIRST_ROOM)
        self.per_shape = ready.per_shape
        fixed = tuple(spec.shape for spec in self.inputs)
        free = any(-1 in shape for shape in fixed)
        # Shapes that `run` need not wait for; () stands for all.
        self._compiled: set[tuple[tuple[int, ...], ...]] = set() if free else {fixed, ()}
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._worker.pid

    def infer(self, batch: Array) -> Array:
        if self._row is not None and batch.shape[1:] != self._row:
            tensors.rows_fit(self._row, batch)
        return self._call(True, [batch], self._deadline_s)[0]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = tensors.ordered(self.inputs, inputs)
        key = tuple(array.shape for array in given) if self.per_shape else ()
        answers = self._call(False, given, self._deadline_s if key in self._compiled else COMPILE_S)
        if len(self._compiled) < MAX_KEYS:
            self._compiled.add(key)
        return {spec.name: answer for spec, answer in zip(self.outputs, answers, strict=True)}

    def close(self) -> None:
        self._worker.close()

    def _call(self, rows: bool, given: Sequence[Array], deadline_s: float) -> list[Array]:
        slots, size = wire.laid_out(given)
        with self._lock:
            if size > self._entered.size:
                self._entered = self._worker.give_room(False, size)
            self._entered.write(slots, given)
            reply = self._worker.ask(Call(rows, slots), deadline_s)
            if isinstance(reply, Need):
                self._left = self._worker.give_room(True, reply.size)
                reply = self._worker.answer(deadline_s)
            if not isinstance(reply, Answer):
                raise self._worker.lost(f"answered with {type(reply).__name__}")
            return [self._copy(slot) for slot in reply.slots]

    def _copy(self, slot: Slot) -> Array:
        try:
            copied: Array = np.array(self._left.view(slot))
        except ValueError as error:
            raise self._worker.lost(f"answered with what cannot be ({error})") from None
        return copied
