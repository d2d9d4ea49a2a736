"""Commands, both sides: a retained state machine at `command/<service>/<verb>/<id>`, one owner per state.

    asker     INIT ------------------------------------------> clears the message
    service         EXECUTING -> SUCCESSFUL with a result | FAILED with a reason

What happens when somebody dies in between:
- A command that came while the service was away is found as INIT at its start and is performed then.
- A command that is found as EXECUTING was cut off by the service's end. Nobody knows how far it came, so it is not run
  a second time: it is FAILED, and the asker decides.
- An asker that gives up clears its message: what has not begun is not performed, what has begun ends without an answer.
A command is performed once. The one exception: a service that dies within the few milliseconds between EXECUTING and
its acknowledgement to the broker may be handed the INIT again.
"""

import asyncio
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

import msgspec

from appliance.bus.port import Batch, Bus, Message
from appliance.errors import BusError, EventError, MillwrightError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Command, CommandState, Kind
from appliance.runtime.patience import within
from appliance.runtime.service import Clock

log = logging.getLogger(__name__)

Handler = Callable[[Command], Awaitable[dict[str, Any]] | dict[str, Any]]

MAX_OPEN = 100  # commands performed at once; more are failed
MAX_REASON = 2000  # characters
MAX_BY = 200
REMEMBERED = 1000  # commands whose repetition is recognised
LAST_WORDS_S = 1.0  # for the broker to take the asker's clearing

_ENDS = (CommandState.SUCCESSFUL, CommandState.FAILED)
_A = TypeVar("_A", bound=msgspec.Struct)


async def serve(
    bus: Bus,
    service: str,
    handlers: Mapping[str, Handler],
    clock: Clock,
    ledger: Ledger | None = None,
    told: Collection[str] = (),
) -> None:
    """Perform the commands of `service` until cancelled. `handlers`: verb -> what to do, returning the result.

    A handler refuses with a MillwrightError; any other error is a defect: logged, and answered as FAILED. Commands
    begin in the order of their arrival, handlers that wait run side by side. `ledger` counts commands, malformed ones
    by reason. `told` are verbs under which the service itself tells of work that outlives it: nobody asks by them.
    """
    desk = _Desk(bus, service, handlers, clock, ledger or Ledger(), told)
    async with bus.subscribe(topics.commands_of(service), qos=1) as batches, asyncio.TaskGroup() as tasks:
        async for batch in batches:
            for message in batch:
                if command := desk.accept(message):
                    tasks.create_task(desk.perform(message.topic, command), name=message.topic)


async def ask(
    bus: Bus,
    service: str,
    verb: str,
    args: dict[str, Any],
    by: str,
    timeout_s: float = 10.0,
    clock: Clock = time.time_ns,
) -> Command:
    """The command in its last state, SUCCESSFUL or FAILED. BusError where the service does not answer in time."""
    topic = topics.command(service, verb, secrets.token_hex(8))
    last = Command(clock(), CommandState.INIT, args, by[:200])
    async with bus.subscribe(topic, qos=1) as batches:
        bus.publish(topic, codec.encode(last), qos=1, retain=True)
        followed = [last]
        try:
            in_time = await within(timeout_s, _follow(batches, followed, clock))
        finally:
            await _clear(bus, topic, batches)
    last = followed[-1]
    if not in_time:
        raise _silence(bus, service, verb, last.state, timeout_s)
    if last.state not in _ENDS:
        raise BusError(f"the bus ended before {service} answered '{verb}'", "Try again.")
    return last


def arguments(command: Command, kind: type[_A]) -> _A:
    """The arguments as a struct of the handler's own. MillwrightError says what fits."""
    try:
        return msgspec.convert(command.args, kind, strict=True)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(kind)) or "none"
        problem, _, where = str(error).partition(" - at `$.")
        place = f"'{where.removesuffix('`')}': " if where else ""
        raise MillwrightError(f"the arguments do not fit: {place}{problem}", f"Arguments: {fields}.") from None


class _Desk:
    """Decides what a message on a command's topic asks for, and publishes its states."""

    def __init__(
        self,
        bus: Bus,
        service: str,
        handlers: Mapping[str, Handler],
        clock: Clock,
        ledger: Ledger,
        told: Collection[str],
    ) -> None:
        self._told = told
        self._bus, self._service, self._handlers, self._clock, self._ledger = bus, service, handlers, clock, ledger
        self._open: set[str] = set()
        self._known: dict[str, None] = {}  # topics that were begun, the oldest first

    def accept(self, message: Message) -> Command | None:
        """The command to perform now, its EXECUTING published; or None."""
        if not message.payload:
            self._open.discard(message.topic)
            return None
        try:
            command, verb = self._read(message)
        except EventError as error:
            self._ledger.received += 1
            self._ledger.refuse(error, message.topic)
            return None
        if verb in self._told:
            return None
        # Only what the broker kept is a state that was left behind; a live EXECUTING is our own word coming back.
        cut_off = command.state is CommandState.EXECUTING and message.retain
        if message.topic in self._known or not (command.state is CommandState.INIT or cut_off):
            return None
        self._ledger.received += 1
        self._remember(message.topic)
        if refusal := self._refusal(verb, cut_off):
            self._ledger.processed += 1
            self._publish(message.topic, command, CommandState.FAILED, reason=str(refusal))
            return None
        self._open.add(message.topic)
        self._publish(message.topic, command, CommandState.EXECUTING)
        return command

    async def perform(self, topic: str, command: Command) -> None:
        handler = self._handlers[_verb(topic)]
        try:
            result = handler(command)
            if inspect.isawaitable(result):
                result = await result
        except MillwrightError as error:
            self._end(topic, command, CommandState.FAILED, reason=str(error))
        except Exception as error:  # a defect in one verb must not end the service for all others
            log.exception("'%s' failed by a defect", topic)
            reason = f"{self._service} failed by a defect ({type(error).__name__}: {error})"[:500]
            self._end(topic, command, CommandState.FAILED, reason=reason)
        else:
            self._end(topic, command, CommandState.SUCCESSFUL, result=result)

    def _read(self, message: Message) -> tuple[Command, str]:
        command = codec.decode(Kind.COMMAND, message.payload, self._clock())
        assert isinstance(command, Command)
        return msgspec.structs.replace(command, by=command.by[:MAX_BY]), _verb(message.topic)

    def _refusal(self, verb: str, cut_off: bool) -> MillwrightError | None:
        if cut_off:
            return MillwrightError(
                f"{self._service} stopped while it performed '{verb}'", "Look whether it took effect, then ask again."
            )
        if verb not in self._handlers:
            known = ", ".join(sorted(self._handlers)) or "none"
            return MillwrightError(f"{self._service} has no command '{verb}'", f"There are: {known}.")
        if len(self._open) >= MAX_OPEN:
            return MillwrightError(f"{self._service} performs {MAX_OPEN} commands already", "Ask again later.")
        return None

    def _remember(self, topic: str) -> None:
        self._known[topic] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    def _end(self, topic: str, command: Command, state: CommandState, **answer: Any) -> None:
        self._ledger.processed += 1
        if topic in self._open:  # else the asker has given up: an answer would stay in the broker for ever
            self._open.discard(topic)
            self._publish(topic, command, state, **answer)

    def _publish(
        self,
        topic: str,
        command: Command,
        state: CommandState,
        result: dict[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        """Nobody's question may end the service: a state that the bus does not take is left out."""
        event = Command(self._clock(), state, command.args, command.by, result or {}, reason[:MAX_REASON])
        try:
            self._bus.publish(topic, codec.encode(event), qos=1, retain=True)
        except BusError as error:
            log.warning("the asker will not hear that %s is %s: %s", topic, state, error.message)


def _verb(topic: str) -> str:
    parts = topics.parse(topic).path.split("/")
    if len(parts) != 3:
        raise EventError("topic", f"'{topic[:80]}' is not command/<service>/<verb>/<id>")
    return parts[1]


async def _follow(batches: AsyncIterator[Batch], states: list[Command], clock: Clock) -> None:
    """Keep the newest state of a command in `states` until it is its last."""
    async for batch in batches:
        states[-1] = _newest(batch, clock(), states[-1])
        if states[-1].state in _ENDS:
            return


def _newest(batch: list[Message], now: int, last: Command) -> Command:
    for message in batch:
        if message.payload:
            command = codec.decode(Kind.COMMAND, message.payload, now)
            assert isinstance(command, Command)
            last = command
    return last


async def _clear(bus: Bus, topic: str, batches: AsyncIterator[Batch]) -> None:
    """Until our own word has come back: nobody would claim it afterwards."""
    bus.publish(topic, b"", qos=1, retain=True)
    if bus.connected:
        await within(LAST_WORDS_S, _cleared(batches))


async def _cleared(batches: AsyncIterator[Batch]) -> None:
    async for batch in batches:
        if not all(message.payload for message in batch):
            return


def _silence(bus: Bus, service: str, verb: str, state: CommandState, timeout_s: float) -> BusError:
    if not bus.connected:
        return BusError(f"'{verb}' did not reach {service}: no connection to the broker", "See 'millwright doctor'.")
    if state is CommandState.INIT:
        problem = f"{service} does not answer '{verb}' ({timeout_s:g} s)"
        return BusError(problem, "Is it running? 'millwright doctor' tells, 'millwright watch' shows each service.")
    return BusError(f"{service} began '{verb}' but did not end it within {timeout_s:g} s", "See the service's log.")
