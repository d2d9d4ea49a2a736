"""Commands as retained state machines: performed once, refused with a remedy, never left in the broker."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from msgspec import Struct

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.port import Message
from appliance.errors import BusError, MillwrightError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Command, CommandState, Kind
from appliance.services import commands
from appliance.services.commands import Handler

ACK = topics.command("detect", "ack", "1")


class Recorder(MemoryBroker):
    """A broker that remembers the states a command went through."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[CommandState] = []

    def accept(self, message: Message) -> None:
        super().accept(message)
        if message.payload:
            self.states.append(read(message).state)


def read(message: Message) -> Command:
    command = codec.decode(Kind.COMMAND, message.payload, 0)
    assert isinstance(command, Command)
    return command


def command(state: CommandState, **args: Any) -> bytes:
    return codec.encode(Command(5, state, args, "anna"))


def noting(done: list[Command]) -> Handler:
    def handle(command: Command) -> dict[str, Any]:
        done.append(command)
        return {}

    return handle


async def settled() -> None:
    """Everything in memory has run as far as it can."""
    for _ in range(30):
        await asyncio.sleep(0)


def served(
    broker: MemoryBroker,
    handlers: Mapping[str, Handler],
    scenario: Callable[[MemoryBus], Awaitable[None]],
    ledger: Ledger | None = None,
) -> None:
    async def main() -> None:
        async with MemoryBus(broker) as mine, MemoryBus(broker) as other:
            task = asyncio.create_task(commands.serve(mine, "detect", handlers, lambda: 7, ledger))
            await settled()
            await scenario(other)
            await settled()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_an_answer_carries_the_result_and_nothing_stays_in_the_broker() -> None:
    broker, answers = Recorder(), []

    async def scenario(bus: MemoryBus) -> None:
        answers.append(await commands.ask(bus, "detect", "ack", {"asset": "line1/pump"}, "anna"))

    served(broker, {"ack": lambda command: {"acknowledged": command.args["asset"], "by": command.by}}, scenario)
    assert answers[0].state is CommandState.SUCCESSFUL
    assert answers[0].result == {"acknowledged": "line1/pump", "by": "anna"}
    assert broker.states == [CommandState.INIT, CommandState.EXECUTING, CommandState.SUCCESSFUL]
    assert broker.retained == {}


def test_a_handler_refuses_with_its_remedy() -> None:
    def refuse(_: Command) -> dict[str, Any]:
        raise MillwrightError("no alarm stands", "See 'millwright alarms list'.")

    async def scenario(bus: MemoryBus) -> None:
        answer = await commands.ask(bus, "detect", "ack", {}, "anna")
        assert answer.state is CommandState.FAILED
        assert answer.reason == "no alarm stands\n  -> See 'millwright alarms list'."

    served(MemoryBroker(), {"ack": refuse}, scenario)


def test_a_defect_in_one_verb_does_not_end_the_service() -> None:
    def fail(_: Command) -> dict[str, Any]:
        raise ValueError("a surprise")

    async def scenario(bus: MemoryBus) -> None:
        answer = await commands.ask(bus, "detect", "ack", {}, "anna")
        assert answer.state is CommandState.FAILED
        assert "defect (ValueError: a surprise)" in answer.reason
        assert (await commands.ask(bus, "detect", "shelve", {}, "anna")).state is CommandState.SUCCESSFUL

    served(MemoryBroker(), {"ack": fail, "shelve": lambda _: {}}, scenario)


def test_an_unknown_verb_names_the_known_ones() -> None:
    async def scenario(bus: MemoryBus) -> None:
        answer = await commands.ask(bus, "detect", "explode", {}, "anna")
        assert answer.state is CommandState.FAILED
        assert "ack, shelve" in answer.reason

    served(MemoryBroker(), {"shelve": lambda _: {}, "ack": lambda _: {}}, scenario)


def test_what_came_while_the_service_was_away_is_performed() -> None:
    broker, done = MemoryBroker(), list[Command]()
    broker.retained[ACK] = Message(ACK, command(CommandState.INIT, asset="a"), 1, True)
    served(broker, {"ack": noting(done)}, lambda _: settled())
    assert [command.args for command in done] == [{"asset": "a"}]
    assert read(broker.retained[ACK]).state is CommandState.SUCCESSFUL


def test_what_was_cut_off_is_failed_and_not_run_again() -> None:
    broker, done = MemoryBroker(), list[Command]()
    broker.retained[ACK] = Message(ACK, command(CommandState.EXECUTING), 1, True)
    served(broker, {"ack": noting(done)}, lambda _: settled())
    assert done == []
    assert read(broker.retained[ACK]).state is CommandState.FAILED
    assert "stopped while it performed 'ack'" in read(broker.retained[ACK]).reason


def test_a_repeated_message_is_performed_once() -> None:
    done = list[Command]()

    async def scenario(bus: MemoryBus) -> None:
        for _ in range(3):
            bus.publish(ACK, command(CommandState.INIT), qos=1, retain=True)
            await settled()

    served(MemoryBroker(), {"ack": noting(done)}, scenario)
    assert len(done) == 1


def test_one_that_waits_does_not_hold_up_the_others() -> None:
    order = []

    async def scenario(bus: MemoryBus) -> None:
        release = asyncio.Event()
        handlers["slow"] = wait_for(release)
        bus.publish(topics.command("detect", "slow", "1"), command(CommandState.INIT), qos=1, retain=True)
        await commands.ask(bus, "detect", "ack", {}, "anna")
        order.append("ack answered")
        release.set()
        await settled()

    def wait_for(release: asyncio.Event) -> Handler:
        async def slow(_: Command) -> dict[str, Any]:
            await release.wait()
            order.append("slow done")
            return {}

        return slow

    handlers: dict[str, Handler] = {"ack": lambda _: {}}
    served(MemoryBroker(), handlers, scenario)
    assert order == ["ack answered", "slow done"]


def test_too_many_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_OPEN", 1)

    async def forever(_: Command) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def scenario(bus: MemoryBus) -> None:
        bus.publish(topics.command("detect", "ack", "1"), command(CommandState.INIT), qos=1, retain=True)
        await settled()
        answer = await commands.ask(bus, "detect", "ack", {}, "anna")
        assert "performs 1 commands already" in answer.reason

    served(MemoryBroker(), {"ack": forever}, scenario)


def test_malformed_commands_are_counted_and_stop_nothing() -> None:
    ledger = Ledger()

    async def scenario(bus: MemoryBus) -> None:
        bus.publish(ACK, b"?", qos=1)
        bus.publish(ACK, codec.encode(Command(1, CommandState.INIT))[:-3], qos=1)
        bus.publish("mw/v1/command/detect/ack", command(CommandState.INIT), qos=1)
        assert (await commands.ask(bus, "detect", "ack", {}, "anna")).state is CommandState.SUCCESSFUL

    served(MemoryBroker(), {"ack": lambda _: {}}, scenario, ledger)
    assert (ledger.received, ledger.processed, ledger.queued) == (4, 1, 0)
    assert sum(ledger.dropped.values()) == 3
    assert ledger.dropped["topic"] == 1


def test_silence_names_the_service_and_clears_the_question() -> None:
    broker = MemoryBroker()

    async def scenario() -> None:
        async with MemoryBus(broker) as bus:
            await commands.ask(bus, "detect", "ack", {}, "anna", timeout_s=0)

    with pytest.raises(BusError, match="detect does not answer 'ack'") as raised:
        asyncio.run(scenario())
    assert "millwright doctor" in raised.value.remedy
    assert broker.retained == {}


def test_an_answer_nobody_waits_for_is_not_left_in_the_broker() -> None:
    broker = MemoryBroker()

    async def scenario(bus: MemoryBus) -> None:
        release = asyncio.Event()

        async def slow(_: Command) -> dict[str, Any]:
            await release.wait()
            return {}

        handlers["ack"] = slow
        bus.publish(ACK, command(CommandState.INIT), qos=1, retain=True)
        await settled()
        bus.publish(ACK, b"", qos=1, retain=True)
        await settled()
        release.set()

    handlers: dict[str, Handler] = {}
    served(broker, handlers, scenario)
    assert broker.retained == {}


class Wanted(Struct, forbid_unknown_fields=True):
    asset: str


def test_arguments_are_checked() -> None:
    assert commands.arguments(Command(1, CommandState.INIT, {"asset": "a"}), Wanted).asset == "a"
    for wrong in ({}, {"asset": 5}, {"asset": "a", "more": 1}):
        with pytest.raises(MillwrightError) as raised:
            commands.arguments(Command(1, CommandState.INIT, wrong), Wanted)
        assert raised.value.remedy == "Arguments: asset."
        assert "$" not in raised.value.message
    assert "'asset': Expected `str`" in refused_arguments({"asset": 5})


def refused_arguments(args: dict[str, Any]) -> str:
    with pytest.raises(MillwrightError) as raised:
        commands.arguments(Command(1, CommandState.INIT, args), Wanted)
    return raised.value.message
