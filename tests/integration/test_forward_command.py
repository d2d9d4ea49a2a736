"""`millwright forward` and `millwright points`, as people type them, beside what runs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvloop

from appliance.bus.mqtt import MqttBus
from appliance.events import codec, topics
from appliance.events.schema import Kind, State
from tests.integration.conftest import PATIENCE_S, Box

CONFIGURATION = """
[devices]
discover = false

[connectors]

[forward.mqtt]
url = "unix:{folder}/run/mqtt.sock"
prefix = "cloud/{box}"
kinds = ["alarm"]

[[forward.http]]
name = "plant"
url = "http://127.0.0.1:1/"
kinds = ["alarm"]

[[points]]
asset = "line1/pump"
point = "speed"
type = "number"
min = 0
max = 100
confirmation = "anyone"
"""


@asynccontextmanager
async def running(box: Box, service: str, holds: Callable[[State], bool]) -> AsyncIterator[None]:
    """The service runs, and has said what is waited for."""
    async with MqttBus(box.url) as bus, bus.subscribe(topics.state(service), qos=1) as batches:
        await bus.wait_connected(PATIENCE_S)
        process = await box.start("run", service)
        try:
            async for batch in batches:
                states = [codec.decode(Kind.STATE, message.payload, 1 << 62) for message in batch]
                if any(isinstance(state, State) and state.online and holds(state) for state in states):
                    break
            yield
        finally:
            process.terminate()
            _, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await scenario()

    uvloop.run(bounded())


def lines(state: State) -> dict[str, str]:
    return {name: one["line"] for name, one in state.detail.get("destinations", {}).items()}


def configure(box: Box) -> None:
    with box.config.open("a") as file:
        file.write(CONFIGURATION.replace("{folder}", str(box.folder)))


def test_what_people_see_and_do_of_destinations(box: Box) -> None:
    configure(box)

    async def scenario() -> None:
        async with running(box, "forward", lambda state: lines(state) == {"mqtt": "open", "plant": "waiting"}):
            code, told, _ = await box.run("forward", "status")
            assert code == 1  # one line is down
            assert "open" in told
            assert "plant -> Is it running, and is the port right?" in told
            _, told, _ = await box.run("doctor")
            assert "its line is open" in told
            assert "Is it running, and is the port right?" in told
            code, told, _ = await box.run("forward", "test", "--json")
            tried = json.loads(told)
            assert (code, tried["mqtt"]["works"], tried["plant"]["works"]) == (1, True, False)
            assert (await box.run("forward", "test", "mqtt"))[0] == 0
            code, told, _ = await box.run("forward", "pause", "mqtt")
            assert (code, told) == (0, "mqtt: paused; what comes in waits\n")
            code, told, _ = await box.run("forward", "status", "--json")
            assert json.loads(told)["mqtt"]["line"] == "paused"
            assert (await box.run("forward", "resume"))[0] == 0
            code, _, errors = await box.run("forward", "pause", "cloud")
            assert (code, "There are: mqtt, plant." in errors) == (1, True)
        code, _, errors = await box.run("forward", "status")
        assert (code, "does not run" in errors) == (3, True)

    play(scenario)


def test_what_people_set(box: Box) -> None:
    configure(box)

    async def scenario() -> None:
        async with running(box, "ingest", lambda state: True):
            code, told, _ = await box.run("points", "list")
            assert (code, "speed" in told, "anyone" in told) == (0, True, True)
            code, _, errors = await box.run("points", "set", "line1/pump", "speed", "120")
            assert (code, "From 0 to 100 is allowed" in errors) == (1, True)
            code, told, _ = await box.run("points", "set", "line1/pump", "speed", "80", "--json")
            word = json.loads(told)["word"]
            code, _, errors = await box.run("points", "confirm", word, "--by", "ben")
            assert (code, "no connector sets" in errors) == (1, True)
        noted = (box.folder / "state" / "points.log").read_text().splitlines()
        assert [json.loads(line)["outcome"] for line in noted] == [
            "refused",
            "waits to be confirmed",
            "ordered",
            "failed",
        ]

    play(scenario)


def test_a_configuration_is_checked_and_shown_with_its_defaults(box: Box) -> None:
    configure(box)

    async def scenario() -> None:
        code, told, errors = await box.run("config", "check")
        assert code == 0, errors
        code, told, _ = await box.run("config", "show", "--json")
        shown = json.loads(told)["forward"]
        assert shown["mqtt"]["budget_mb"] == 512
        assert shown["http"][0]["name"] == "plant"
        box.config.write_text(box.config.read_text().replace('kinds = ["alarm"]', 'kinds = ["alarms"]', 1))
        code, _, errors = await box.run("config", "check")
        assert (code, "box.toml" in errors) == (2, True)

    play(scenario)
