"""`millwright doctor` on a box where things run, and where they do not."""

import asyncio
import json
import os
import pty
import subprocess
import time
from typing import Any, Protocol

from appliance.bus.mqtt import MqttBus
from appliance.events import codec, topics
from appliance.events.schema import Kind, State

PATIENCE_S = 60.0


class Box(Protocol):
    """See conftest.py."""

    url: str
    environment: dict[str, str]

    def command(self, *words: str) -> list[str]: ...

    async def start(self, *words: str) -> asyncio.subprocess.Process: ...

    async def run(self, *words: str) -> tuple[int, str, str]: ...


def examined(box: Box, *words: str, **states: State) -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE_S), MqttBus(box.url) as bus:
            await bus.wait_connected()
            for name, state in states.items():
                bus.publish(topics.state(name), codec.encode(state), qos=1, retain=True)
            await bus.drain()
            code, output, errors = await box.run("doctor", *words)
            assert errors == ""
            return code, output

    return asyncio.run(main())


def healthy() -> dict[str, State]:
    at = time.time_ns()
    return {name: State(at, True, "1", received=2, processed=2) for name in ("ingest", "detect", "record")}


def by_name(text: str) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(text)["findings"]}


def test_a_box_that_works(box: Box) -> None:
    code, output = examined(box, "--json", **healthy())
    found = by_name(output)
    assert json.loads(output)["ok"], [one for one in found.values() if one["status"] == "fail"]
    assert code == 0
    assert found["bus"]["detail"] == f"{box.url} answers"
    assert "2 = processed 2" in found["detect"]["detail"]
    assert {"software", "configuration", "socket", "broker", "history", "clock", "CPU"} <= set(found)
    assert all(set(one) == {"name", "status", "detail", "remedy"} for one in found.values())


def test_a_service_that_died_and_messages_that_were_dropped(box: Box) -> None:
    states = healthy() | {
        "record": State(0, False),
        "ingest": State(time.time_ns(), True, "1", received=3, processed=2, dropped={"topic": 1}),
    }
    code, output = examined(box, **states)
    assert code == 1
    assert "fail record: is not running\n     -> See its log, then start it: millwright run record\n" in output
    assert "warn ingest drops: dropped 1 message: topic" in output
    assert output.splitlines()[-1].endswith("1 broken")


def test_what_was_published_to_a_misspelt_topic(box: Box) -> None:
    async def main() -> str:
        async with asyncio.timeout(PATIENCE_S), MqttBus(box.url) as bus:
            bus.publish("mw/v1/readings/line1/pump", b'{"temperature": 61.2}', qos=1, retain=True)
            ingest = await box.start("run", "ingest")
            async with bus.subscribe(topics.state("ingest"), qos=1) as batches:
                async for batch in batches:
                    state = codec.decode(Kind.STATE, batch[-1].payload, 0)
                    assert isinstance(state, State)
                    if state.dropped:
                        break
            _, output, _ = await box.run("doctor")
            ingest.terminate()
            await ingest.communicate()
        return output

    told = asyncio.run(main())
    assert "warn ingest drops: dropped 1 message: no-such-kind" in told
    assert "'readings' is no kind of message; did you mean mw/v1/reading/line1/pump?" in told
    assert "books do not balance" not in told


def test_nothing_runs(quiet_box: Box) -> None:
    code, output, errors = asyncio.run(quiet_box.run("doctor", "--json"))
    assert (code, errors) == (1, "")
    found = by_name(output)
    assert found["bus"]["status"] == "fail"
    assert "millwright run" in found["bus"]["remedy"]
    assert "detect" not in found
    assert found["configuration"]["status"] == "ok"


def test_a_broken_configuration_is_a_finding_beside_the_others(quiet_box: Box) -> None:
    code, output, _ = asyncio.run(quiet_box.run("doctor", "--json", "--config", "/nowhere/box.toml"))
    assert code == 1
    assert by_name(output)["configuration"]["detail"].startswith("/nowhere/box.toml")
    assert by_name(output)["software"]["status"] == "ok"


def test_on_a_terminal_it_is_a_table(quiet_box: Box) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(quiet_box.command("doctor"), stdout=theirs, stderr=theirs, env=quiet_box.environment)
    os.close(theirs)
    shown = b""
    while b"broken" not in shown:
        shown += os.read(ours, 65_536)
    os.close(ours)
    assert process.wait(PATIENCE_S) == 1
    assert b"no Millwright answers" in shown
    assert b"Traceback" not in shown
