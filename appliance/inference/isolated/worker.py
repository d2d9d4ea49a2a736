"""The process that computes: one model, one question at a time, until its parent is gone.

Started by `workers`; never by hand.
"""

import fcntl
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from appliance import plugins
from appliance.errors import MillwrightError, ModelError
from appliance.inference.isolated import wire
from appliance.inference.isolated.wire import Answer, Ask, Call, Compile, Memory, Need, Ready, Refused, Room, Value
from appliance.inference.port import Array, Backend, Model

MAX_DESCRIPTORS = 1


def main(control: int, lifeline: int, memory: int) -> None:
    """`control` is the socket, `lifeline` a pipe whose other end only the parent holds, `memory` the bytes of address
    space that may be used; 0: any."""
    die_with(lifeline)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with socket.socket(fileno=control) as channel:
        Worker(channel).serve()


def die_with(lifeline: int) -> None:
    """The kernel ends this process when the pipe's other end closes, whatever its threads are stuck in.

    (A parent-death signal would come when the thread that started us ends, not the process.)
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends the process
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it closed before we listened
        sys.exit(1)


class Worker:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._model: Model | None = None
        self._entered: Memory | None = None
        self._left: Memory | None = None
        self._waiting: Sequence[Array] = ()  # an answer for which there is no room yet

    def serve(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._channel, wire.LONGEST, MAX_DESCRIPTORS)
            if not data:
                return
            reply = self._reply(wire.decode_question(data), descriptors)
            if reply is not None:
                self._channel.send(wire.encode(reply))

    def _reply(self, question: wire.Question, descriptors: Sequence[int]) -> wire.Reply | None:
        try:
            match question:
                case Call():
                    return self._call(question)
                case Room():
                    return self._take_room(question, descriptors[0])
                case Compile():
                    return self._compile(question)
                case Ask():
                    return _ask(question)
        except MillwrightError as error:
            return Refused(isinstance(error, ModelError), error.message, error.remedy)
        except MemoryError:
            which = question.path if isinstance(question, Compile) else "the model"
            return Refused(True, f"{which}: there is not enough memory for it", "Choose a smaller one.")

    def _compile(self, wanted: Compile) -> Ready:
        model = _backend(wanted.backend, wanted.settings).compile(Path(wanted.path), wanted.device, wanted.plan)
        self._model = model
        return Ready(model.device, list(model.inputs), list(model.outputs), model.per_shape)

    def _call(self, call: Call) -> Answer | Need:
        assert self._model is not None
        assert self._entered is not None
        given = [self._entered.view(slot) for slot in call.slots]
        if call.rows:
            return self._answer([self._model.infer(given[0])])
        named = {spec.name: array for spec, array in zip(self._model.inputs, given, strict=True)}
        answers = self._model.run(named)
        return self._answer([answers[spec.name] for spec in self._model.outputs])

    def _answer(self, tensors: Sequence[Array]) -> Answer | Need:
        slots, size = wire.laid_out(tensors)
        if self._left is None or self._left.size < size:
            self._waiting = tensors
            return Need(size)
        self._left.write(slots, tensors)
        return Answer(slots)

    def _take_room(self, room: Room, descriptor: int) -> Answer | Need | None:
        memory = Memory(descriptor, room.size)
        os.close(descriptor)
        if not room.leaving:
            self._entered = memory
            return None
        self._left = memory
        waiting, self._waiting = self._waiting, ()
        return self._answer(waiting) if waiting else None


def _ask(asked: Ask) -> Value | Refused:
    try:
        value: Any = _backend(asked.backend, asked.settings).ask(asked.device, asked.name)
    except RuntimeError as error:
        return Refused(False, str(error), "")
    if isinstance(value, (list, tuple)):
        return Value([str(item) for item in value])
    return Value(value if isinstance(value, (str, int, float)) else str(value))


def _backend(name: str, settings: dict[str, Any]) -> Backend:
    plugin = plugins.load("appliance.inference.backends", name)
    backend: Backend = plugin.create(msgspec.convert(settings, plugin.Settings))
    return backend
