"""Serves models to others: over the bus, and over KServe v2 REST on loopback where a port is configured.

    command/infer/run/<id>      {model, version, inputs: {name: ...}, outputs: [...]} -> decoded and raw answers
    command/infer/load|unload   {model}

Of an input over the bus the numbers stand in the command, in shared memory or in a file; of an output in the answer or
in shared memory (`appliance.services.tensors` has their forms). What is large never travels through the broker.

Models follow the library: `millwright models use` takes effect within a second, calls under way finish on the old one.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec

from appliance import __version__
from appliance.bus.port import Bus
from appliance.config.schema import Infer as Settings
from appliance.errors import MillwrightError, ModelError, RequestError
from appliance.events.ledger import Ledger
from appliance.events.schema import Command
from appliance.inference.serving import Repertoire, Served
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands, http
from appliance.services.kserve.endpoint import Endpoint
from appliance.services.status import Status, tell_ready
from appliance.services.tensors import Places

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the library

_T = TypeVar("_T")
_Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Run(msgspec.Struct, forbid_unknown_fields=True):
    model: _Reference
    inputs: Annotated[dict[str, Any], msgspec.Meta(max_length=64)]
    version: str = ""
    outputs: list[str] | dict[str, Any] | None = None  # names, or name -> where it goes; None: as the model suits
    decode: bool | None = None  # None: where the model has a decoder


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    model: _Reference


class Infer:
    name = "infer"

    def __init__(self, bus: Bus, repertoire: Repertoire, settings: Settings, clock: Clock) -> None:
        self._bus, self._repertoire, self._settings, self._clock = bus, repertoire, settings, clock
        self._ledger, self._commands = Ledger(), Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._places = Places(settings.folders, settings.inline_kb << 10, settings.max_body_mb << 20)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="infer")
        self._waiting = 0  # calls in the pool or before it
        self._looked = False  # all that is wanted was loaded or tried
        self.port = 0  # that is listened on

    async def run(self, pulse: Pulse) -> None:
        try:
            async with self._bus, AsyncExitStack() as stack:
                stack.callback(self._status.publish, online=False)
                await self._listen(stack)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="infer status")
                    group.create_task(self._serve(), name="infer commands")
                    group.create_task(self._follow(), name="infer models")
                    group.create_task(tell_ready(self._bus, pulse), name="infer ready")
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._repertoire.close)

    async def _listen(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if not settings.port:
            return
        size = settings.max_body_mb << 20
        endpoint = Endpoint(self._repertoire, self._work, lambda: self._looked, size)
        stack.callback(endpoint.close)
        limits = http.Limits(size, 4 * size, settings.max_connections)
        self.port = await stack.enter_async_context(http.listening(endpoint.answer, settings.port, limits))
        log.info("KServe v2 on http://localhost:%s", self.port)

    async def _follow(self) -> None:
        """In step with the library. Loading is slow: it has a thread of its own, inferences go on meanwhile."""
        seen: tuple[int, ...] | None = None
        while True:
            stamp = self._repertoire.library.stamp()
            if stamp != seen:
                try:
                    await asyncio.to_thread(self._repertoire.follow)
                    seen = stamp
                except MillwrightError as error:
                    log.error("%s", error)
                self._looked = True
            await asyncio.sleep(LOOK_S)

    async def _serve(self) -> None:
        handlers: dict[str, commands.Handler] = {"run": self._run, "load": self._load, "unload": self._unload}
        await commands.serve(self._bus, self.name, handlers, self._clock, self._commands)

    async def _run(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Run)
        return await self._work(lambda: self._answered(asked))

    async def _load(self, command: Command) -> dict[str, Any]:
        reference = commands.arguments(command, _Which).model
        return _told(await asyncio.to_thread(self._repertoire.load, reference))

    async def _unload(self, command: Command) -> dict[str, Any]:
        name, _, version = commands.arguments(command, _Which).model.partition("@")
        await asyncio.to_thread(self._repertoire.unload, name, version)
        return {"model": name}

    def _answered(self, asked: _Run) -> dict[str, Any]:
        """In a thread: read, compute, write."""
        with self._repertoire.using(asked.model, asked.version) as served:
            try:
                return self._answer_of(served, asked)
            except ModelError as error:
                raise ModelError(f"model '{served.name}': {error.message}", error.remedy) from None

    def _answer_of(self, served: Served, asked: _Run) -> dict[str, Any]:
        inputs = self._places.read(asked.inputs, served.inputs)
        decode = served.decoder is not None if asked.decode is None else asked.decode
        wanted = _wanted(asked.outputs, decode, served)
        answer = served.answer(inputs, list(wanted), decode)
        head = {"model": served.name, "version": served.version, "device": answer.device}
        decoded = {} if answer.decoded is None else {"decoded": self._places.small("decoded", answer.decoded)}
        return {**head, **decoded, "outputs": self._places.write(answer.outputs, wanted)}

    async def _work(self, call: Callable[[], _T]) -> _T:
        """The call's result, from a thread of the pool. RequestError where too many wait, or it takes too long."""
        ledger, settings = self._ledger, self._settings
        ledger.received += 1
        if self._waiting >= settings.max_waiting:
            ledger.drop("busy")
            raise RequestError(503, f"{settings.max_waiting} requests wait already", "Ask again later.")
        self._waiting += 1
        work = self._pool.submit(call)
        work.add_done_callback(partial(self._ended, asyncio.get_running_loop()))
        answer = asyncio.wrap_future(work)
        if not (await asyncio.wait([answer], timeout=settings.timeout_s))[0]:  # which cancels nothing
            work.cancel()
            raise RequestError(
                504,
                f"no answer within {settings.timeout_s:g} s",
                "Look at `millwright doctor`, or raise `infer.timeout_s`.",
            )
        return answer.result()

    def _ended(self, loop: asyncio.AbstractEventLoop, _: "Future[Any]") -> None:
        """In the thread that computed."""
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(self._count)

    def _count(self) -> None:
        self._waiting -= 1
        self._ledger.processed += 1

    def _detail(self) -> dict[str, Any]:
        served = {f"{one.name}@{one.version}": _told(one) for one in self._repertoire.loaded}
        refused = {"commands_dropped": dict(self._commands.dropped)} if self._commands.dropped else {}
        computers = {one.name: one.computer for one in self._repertoire.loaded}
        return {
            "port": self.port,
            "models": served,
            "trouble": "; ".join(self._repertoire.problems.values()).replace("\n  -> ", " "),
            "fallback": _joined({name: computer.fallback for name, computer in computers.items()}),
            "alarm": _joined({name: computer.alarm for name, computer in computers.items()}),
            **refused,
        }


def _told(served: Served) -> dict[str, Any]:
    computer = served.computer
    return {
        "model": served.name,
        "version": served.version,
        "hash": served.bundle.digest,
        "task": served.bundle.card.task,
        "device": computer.device,
        "fallback": computer.fallback,
    }


def _joined(words: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in words.items() if why)


def _wanted(outputs: list[str] | dict[str, Any] | None, decode: bool, served: Served) -> dict[str, Any]:
    """Name -> where it goes, None for the answer itself. Decoded answers make the raw ones unasked for."""
    if outputs is None:
        return {} if decode else dict.fromkeys(spec.name for spec in served.outputs)
    return outputs if isinstance(outputs, dict) else dict.fromkeys(outputs)
