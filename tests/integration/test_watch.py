"""`millwright watch` and `millwright alarms` over a real mosquitto, as a person uses them."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.errors import MillwrightError
from appliance.events import codec, topics
from appliance.events.schema import (
    Alarm,
    AlarmState,
    Command,
    Event,
    Kind,
    Reading,
    Score,
    Severity,
    Stage,
    State,
)
from appliance.services import commands
from appliance.store.alarms import FILE, Alarms, Change

PATIENCE_S = 30.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Box(Protocol):
    """See conftest.py."""

    folder: Path
    url: str
    environment: dict[str, str]

    def command(self, *words: str) -> list[str]: ...

    async def start(self, *words: str) -> asyncio.subprocess.Process: ...

    async def run(self, *words: str) -> tuple[int, str, str]: ...


def message(kind: Kind, path: str, event: Event, kept: bool = False) -> Message:
    return Message(topics.topic(kind, path), codec.encode(event), int(kept), kept)


def alarm(path: str, state: AlarmState = AlarmState.UNACKNOWLEDGED, **fields: Any) -> Message:
    at = time.time_ns()
    event = Alarm(f"id-{path[-4:]}", at, at, state, Severity.ALARM, "vibration", 5.0, 2.0, **fields)
    return message(Kind.ALARM, path, event, kept=True)


def scene() -> list[Message]:
    at = time.time_ns()
    return [
        message(Kind.STATE, "detect", State(at, True, received=5, processed=4, dropped={"topic": 1}), kept=True),
        message(Kind.READING, "line1/pump", Reading(at, {"vibration": 0.5, "flow": 3.0})),
        message(Kind.SCORE, "line1/pump", Score(at, 5.0, 2.0, Stage.ALARMING, "vibration", alarm=True, device="CPU")),
        alarm("line1/pump"),
    ]


@asynccontextmanager
async def session(box: Box) -> AsyncIterator[MqttBus]:
    async with asyncio.timeout(PATIENCE_S), MqttBus(box.url) as bus:
        await bus.wait_connected()
        yield bus


@asynccontextmanager
async def publishing(bus: MqttBus) -> AsyncIterator[None]:
    """The scene, again and again: whoever comes late sees it too."""

    async def publish() -> None:
        while True:
            bus.publish_many(scene())
            await bus.drain()

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()


async def lines_until(stream: asyncio.StreamReader, wanted: set[str]) -> list[dict[str, Any]]:
    """JSON lines until one of each wanted `kind subject` has come."""
    seen: list[dict[str, Any]] = []
    while not wanted <= {f"{line.get('kind')} {line.get('subject')}" for line in seen}:
        seen.append(json.loads(await stream.readline()))
    return seen


class TestWatch:
    def test_json_lines_tell_changes_and_end_with_a_summary(self, box: Box) -> None:
        async def main() -> None:
            async with session(box) as bus, publishing(bus):
                process = await box.start("watch", "--json")
                assert process.stdout is not None
                wanted = {"alarm line1/pump", "stage line1/pump", "service detect", "asset line1/pump"}
                told = await lines_until(process.stdout, wanted)
                assert {line["type"] for line in told} <= {"change", "summary"}
                process.send_signal(signal.SIGINT)
                output, errors = await process.communicate()
            summary = json.loads(output.splitlines()[-1])
            assert (process.returncode, errors, summary["type"]) == (0, b"", "summary")
            assert summary["assets"]["line1/pump"]["values"] == {"vibration": 0.5, "flow": 3.0}
            assert summary["standing"][0]["asset"] == "line1/pump"
            assert summary["services"]["detect"]["balanced"]
            assert summary["dropped"] == {"topic": 1}

        asyncio.run(main())

    def test_plain_lines_where_there_is_no_terminal_and_an_end_by_itself(self, box: Box) -> None:
        async def main() -> tuple[int, str, str]:
            async with session(box) as bus:
                bus.publish_many(scene())
                await bus.drain()
                return await box.run("watch", "--seconds", "1")

        code, output, errors = asyncio.run(main())
        assert (code, errors) == (0, "")
        assert "alarm line1/pump: alarm unacknowledged, cause vibration" in output
        assert "service detect: drops messages: topic (1)" in output
        assert "alarms standing 1" in output.splitlines()[-1]

    def test_a_reader_that_leaves_ends_it_quietly(self, box: Box) -> None:
        async def main() -> tuple[int | None, bytes]:
            reader, writer = os.pipe()
            process = await asyncio.create_subprocess_exec(
                *box.command("watch", "--json"), stdout=writer, stderr=asyncio.subprocess.PIPE, env=box.environment
            )
            os.close(writer)
            os.close(reader)
            async with session(box) as bus:
                bus.publish_many(scene())
                _, errors = await process.communicate()
            return process.returncode, errors

        assert asyncio.run(main()) == (141, b"")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_on_a_terminal_it_shows_the_alarm_and_gives_the_screen_back(self, box: Box, number: int) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = subprocess.Popen(
            box.command("watch"), stdin=theirs, stdout=theirs, stderr=theirs, env=box.environment
        )
        os.close(theirs)

        async def main() -> str:
            async with session(box) as bus, publishing(bus):
                shown = await read_until(ours, "ALARM  line1/pump: vibration")
            process.send_signal(number)
            return shown + await read_until(ours, "\x1b[?1049l")

        shown = asyncio.run(main())
        assert process.wait(PATIENCE_S) == 0
        os.close(ours)
        text = ESCAPES.sub("", shown)
        assert "you have seen it?  millwright alarms ack line1/pump" in text
        assert re.search(r"detect +on +5 +4 +0 +1", text)
        assert "Traceback" not in text

    def test_where_nothing_runs_it_says_how_to_start(self, quiet_box: Box) -> None:
        code, output, errors = asyncio.run(quiet_box.run("watch"))
        assert (code, output) == (3, "")
        assert "no Millwright answers" in errors
        assert "millwright run" in errors

    def test_a_socket_without_a_broker_is_no_millwright_either(self, quiet_box: Box) -> None:
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(quiet_box.url.removeprefix("unix:"))
        code, _, errors = asyncio.run(quiet_box.run("alarms", "list"))
        assert code == 3
        assert "no Millwright answers" in errors


async def read_until(terminal: int, wanted: str) -> str:
    """What the terminal was told until the text has come, its escapes left out of the comparison."""
    loop, shown, arrived = asyncio.get_running_loop(), bytearray(), asyncio.Event()

    def read() -> None:
        shown.extend(os.read(terminal, 65_536))
        arrived.set()

    loop.add_reader(terminal, read)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                text = shown.decode("utf-8", "replace")
                if wanted in text or wanted in ESCAPES.sub("", text):
                    return text
                await arrived.wait()
                arrived.clear()
    finally:
        loop.remove_reader(terminal)


class Operator:
    """The detect service's side of the commands about alarms."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str]] = []

    def handle(self, verb: str) -> commands.Handler:
        def perform(command: Command) -> dict[str, Any]:
            self.asked.append((verb, command.args, command.by))
            if command.args["alarm"] == "nothing":
                raise MillwrightError("no standing alarm is 'nothing'", "'millwright alarms list' shows them.")
            return {"asset": "line1/pump", "alarm": "id-pump", "state": "acknowledged"}

        return perform


@asynccontextmanager
async def operator(box: Box) -> AsyncIterator[Operator]:
    desk = Operator()
    async with session(box) as bus:
        handlers = {verb: desk.handle(verb) for verb in ("ack", "shelve", "unshelve")}
        task = asyncio.create_task(commands.serve(bus, "detect", handlers, time.time_ns))
        yield desk
        task.cancel()


class TestAlarms:
    def listed(self, box: Box, *kept: Message, json_too: bool = True) -> tuple[int, Any]:
        async def main() -> tuple[int, Any]:
            async with session(box) as bus:
                bus.publish_many(kept)
                await bus.drain()
                code, output, errors = await box.run("alarms", "list", *(["--json"] if json_too else []))
                assert errors == ""
                return code, json.loads(output) if json_too else output

        return asyncio.run(main())

    def test_none_stands(self, box: Box) -> None:
        code, found = self.listed(box)
        assert (code, found["alarms"], found["waiting"]) == (0, [], 0)
        assert self.listed(box, json_too=False) == (0, "No alarm stands.\n")

    def test_one_that_waits_gives_exit_code_4(self, box: Box) -> None:
        code, found = self.listed(box, alarm("line1/pump"), alarm("line1/fan", AlarmState.ACKNOWLEDGED, by="anna"))
        assert (code, found["waiting"]) == (4, 1)
        assert [(one["asset"], one["state"], one["by"]) for one in found["alarms"]] == [
            ("line1/pump", "unacknowledged", ""),
            ("line1/fan", "acknowledged", "anna"),
        ]

    def test_those_that_are_seen_give_exit_code_0(self, box: Box) -> None:
        code, output = self.listed(box, alarm("line1/fan", AlarmState.ACKNOWLEDGED, by="anna"), json_too=False)
        assert code == 0
        assert re.search(r"id-/fan +alarm +line1/fan +acknowledged .* vibration +5 +2 +anna", output)

    def test_a_thousand_retained_alarms_are_all_listed(self, box: Box) -> None:
        _, found = self.listed(box, *(alarm(f"hall/a{number:04}") for number in range(1000)))
        assert len(found["alarms"]) == 1000

    @pytest.mark.parametrize(
        ("words", "asked"),
        [
            (["ack", "line1/pump", "--by", "anna"], ("ack", {"alarm": "line1/pump"}, "anna")),
            (
                ["shelve", "id-pump", "--minutes", "30", "--by", "bo"],
                ("shelve", {"alarm": "id-pump", "minutes": 30.0}, "bo"),
            ),
            (["unshelve", "id-pump", "--by", "bo"], ("unshelve", {"alarm": "id-pump"}, "bo")),
        ],
    )
    def test_what_a_person_says_reaches_the_detect_service(self, box: Box, words: list[str], asked: Any) -> None:
        async def main() -> tuple[Operator, tuple[int, str, str], tuple[int, str, str]]:
            async with operator(box) as desk:
                return desk, await box.run("alarms", *words), await box.run("alarms", *words, "--json")

        desk, plain, as_json = asyncio.run(main())
        assert desk.asked == [asked, asked]
        assert plain == (0, "line1/pump: alarm id-pump is acknowledged\n", "")
        assert as_json[0] == 0
        assert json.loads(as_json[1])["state"] == "acknowledged"

    def test_a_refusal_is_told_with_its_remedy(self, box: Box) -> None:
        async def main() -> tuple[tuple[int, str, str], tuple[int, str, str]]:
            async with operator(box):
                return await box.run("alarms", "ack", "nothing"), await box.run("alarms", "ack", "nothing", "--json")

        plain, as_json = asyncio.run(main())
        told = "millwright: no standing alarm is 'nothing'\n  -> 'millwright alarms list' shows them.\n"
        assert plain == (1, "", told)
        assert (as_json[0], json.loads(as_json[1])["state"]) == (1, "failed")


class TestRecord:
    def record(self, box: Box) -> None:
        alarms = Alarms(box.folder / "state" / FILE)
        for state in (AlarmState.UNACKNOWLEDGED, AlarmState.ACKNOWLEDGED, AlarmState.NORMAL):
            event = codec.decode(Kind.ALARM, alarm("line1/fan", state, by="anna").payload, 0)
            assert isinstance(event, Alarm)
            alarms.record([Change("line1/fan", event)])
        alarms.close()

    def test_those_that_ended_are_listed_after_those_that_stand(self, box: Box) -> None:
        self.record(box)

        async def main() -> tuple[int, str, str]:
            async with session(box) as bus:
                bus.publish_many([alarm("line1/pump")])
                await bus.drain()
                return await box.run("alarms", "list", "--all", "--json")

        code, output, _ = asyncio.run(main())
        assert code == 4
        found = [(one["asset"], one["state"]) for one in json.loads(output)["alarms"]]
        assert found == [("line1/pump", "unacknowledged"), ("line1/fan", "normal")]

    def test_the_record_is_read_where_nothing_runs(self, quiet_box: Box) -> None:
        self.record(quiet_box)
        code, output, errors = asyncio.run(quiet_box.run("alarms", "list", "--all"))
        assert (code, errors) == (0, "")
        assert re.search(r"id-/fan +alarm +line1/fan +normal .* anna", output)

    def test_where_there_is_no_record_it_says_so(self, quiet_box: Box) -> None:
        code, output, errors = asyncio.run(quiet_box.run("alarms", "list", "--all"))
        assert (code, output) == (1, "")
        assert "alarms.sqlite" in errors
        assert "->" in errors
