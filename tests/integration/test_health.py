"""`millwright health`: on a box where things run, and where they do not."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any, Protocol

import pytest

from appliance.bus.mqtt import MqttBus
from appliance.cli.health import is_old
from appliance.events import codec, topics
from appliance.events.schema import Kind, State

PATIENCE_S = 120.0


class Box(Protocol):
    """See conftest.py."""

    folder: Path
    url: str
    environment: dict[str, str]

    @property
    def config(self) -> Path: ...

    def command(self, *words: str) -> list[str]: ...

    async def start(self, *words: str) -> asyncio.subprocess.Process: ...

    async def run(self, *words: str) -> tuple[int, str, str]: ...


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def by_name(output: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(output)["findings"]}


def examined(box: Box, *running: str, timeout_s: float = 0.0) -> tuple[int, dict[str, dict[str, Any]]]:
    """With these services, once they are online; or with all where none is named."""

    async def main() -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE_S):
            services = await box.start("run", *running)
            try:
                await until_online(box, set(running) - {"broker"})
                gate = await box.start("health", "--json", "--timeout", str(timeout_s))
                output, _ = await gate.communicate()
                assert gate.returncode is not None
                return gate.returncode, output.decode()
            finally:
                services.terminate()
                await services.communicate()

    code, output = asyncio.run(main())
    return code, by_name(output)


async def until_online(box: Box, names: set[str]) -> None:
    async with MqttBus(box.url) as bus, bus.subscribe(*map(topics.state, names or {"none"}), qos=1) as batches:
        await bus.wait_connected(PATIENCE_S)
        waiting = set(names)
        if not waiting:
            return
        async for batch in batches:
            for message in batch:
                state = codec.decode(Kind.STATE, message.payload, 0)
                assert isinstance(state, State)
                waiting -= {message.topic.rpartition("/")[2]} if state.online else set()
            if not waiting:
                return


def test_a_box_that_does_its_work(quiet_box: Box) -> None:
    code, found = examined(quiet_box, timeout_s=90)
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(found, "ok")
    assert code == 0
    assert {"bus", "record", "detect", "update", "ingest", "detector", "vault"} <= set(found)
    assert "CPU" in found["detector"]["detail"]


def test_a_box_on_which_nothing_runs(quiet_box: Box) -> None:
    code, output, errors = asyncio.run(quiet_box.run("health", "--timeout", "0"))
    assert (code, errors) == (1, "")
    assert output.startswith("fail bus: no Millwright answers")
    assert "\n     -> " in output


def test_a_service_that_is_missing(quiet_box: Box) -> None:
    code, found = examined(quiet_box, "broker", "record")
    assert code == 1
    assert found["bus"]["status"] == "ok"
    assert found["detector"]["status"] == "fail"
    assert found["detect"]["remedy"].startswith("journalctl")
    assert found["detect"]["status"] == found["ingest"]["status"] == "fail"


def test_a_port_that_nobody_listens_at(quiet_box: Box, unused_port: int) -> None:
    with quiet_box.config.open("a") as file:
        file.write(f"[infer]\nport = {unused_port}\n")
    code, found = examined(quiet_box, "broker", "record", "detect", "update", "ingest")
    assert code == 1
    assert found["infer.port"]["status"] == found["infer"]["status"] == "fail"


def test_a_vault_that_does_not_open(quiet_box: Box) -> None:
    (folder := quiet_box.folder / "state" / "vault").mkdir(parents=True)
    for name in ("vault.1", "vault.2"):
        (folder / name).write_bytes(b"what nobody can open")
    code, found = examined(quiet_box, "broker", "record", "detect", "update", "ingest")
    assert code == 1
    assert found["vault"]["status"] == "fail"
    assert found["vault"]["remedy"]


def test_the_word_of_services_that_died_before_the_boot_does_not_count(box: Box) -> None:
    async def main() -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE_S), MqttBus(box.url) as bus:
            await bus.wait_connected()
            for name in ("record", "detect", "update", "ingest"):
                bus.publish(topics.state(name), codec.encode(State(1, True, "1")), qos=1, retain=True)
            await bus.drain()
            code, output, _ = await box.run("health", "--json", "--timeout", "0")
            return code, output

    code, output = asyncio.run(main())
    found = by_name(output)
    assert code == 1
    assert {found[name]["detail"] for name in ("record", "detect", "update", "ingest")} == {"offline"}


@pytest.mark.parametrize(("online", "at", "old"), [(True, 5, True), (True, 15, False), (False, 5, False)])
def test_a_word_is_old_where_it_is_from_before_the_boot(online: bool, at: int, old: bool) -> None:
    assert is_old(State(at, online, "1"), booted_ns=10) == old


def test_a_configuration_that_is_wrong(quiet_box: Box) -> None:
    quiet_box.config.write_text("[nonsense]\n")
    code, _, errors = asyncio.run(quiet_box.run("health", "--timeout", "0"))
    assert code == 2
    assert "nonsense" in errors
