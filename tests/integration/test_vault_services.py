"""Secrets on their way to those who need them: the bus's password, a connector's; and what never sees them: log, bus,
configuration, state."""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Struct

from appliance import assembly, connecting, plugins
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Credentials, Message
from appliance.cli import findings
from appliance.config.load import load
from appliance.config.secrets import Reveal, VaultName
from appliance.errors import BusError, ConfigError, ConnectorError
from appliance.events import codec, topics
from appliance.events.schema import Audit, Kind, State
from appliance.vault import client
from appliance.vault.secret import Secret
from tests.integration.conftest import PATH, Box

WAIT_S = 30.0
CANARY, SECOND = "canary-51c0de-first", "canary-51c0de-second"


def played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def play(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return play


def credentials(password: str) -> Credentials:
    async def told() -> tuple[str, bytes]:
        return "box", password.encode()

    return told


class Broker:
    """A mosquitto that wants a password."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"unix:{folder}/b.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, password: str) -> None:
        program, hasher = shutil.which("mosquitto", path=PATH), shutil.which("mosquitto_passwd", path=PATH)
        if program is None or hasher is None:
            pytest.skip("mosquitto is not installed")
        passwords, settings = self.folder / "passwords", self.folder / "mosquitto.conf"
        passwords.write_text("")
        passwords.chmod(0o600)
        subprocess.run([hasher, "-b", str(passwords), "box", password], check=True, capture_output=True)
        user = "user root\n" if os.geteuid() == 0 else ""
        settings.write_text(
            f"listener 0 {self.folder}/b.sock\nallow_anonymous false\npassword_file {passwords}\nlog_dest stderr\n"
            f"{user}"
        )
        self.process = subprocess.Popen([program, "-c", str(settings)], stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if b" running" in line:
                break
        self.process.stderr.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(WAIT_S)


@pytest.fixture
def broker(quiet_box: Box) -> Iterator[Broker]:
    made = Broker(quiet_box.folder)
    yield made
    made.stop()


def configured(box: Box, broker: Broker | None, backend: str = "plain") -> None:
    bus = f'[bus]\nurl = "{broker.url}"\nusername = "box"\npassword = {{vault = "mqtt/plant"}}\n' if broker else ""
    box.config.write_text(
        f'[paths]\nstate = "{box.folder}/state"\nrun = "{box.folder}/run"\n[vault]\nbackend = "{backend}"\n'
        f'[log]\nlevel = "debug"\n[connectors.host]\ninterval_s = 0.1\n{bus}'
    )


async def made(box: Box, password: str = CANARY) -> None:
    assert (await box.run("vault", "init", "--recovery-file", f"{box.folder}/key"))[0] == 0
    await put(box, password)


async def put(box: Box, password: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *box.command("vault", "put", "mqtt/plant"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env=box.environment,
    )
    await process.communicate(password.encode())
    assert process.returncode == 0


@asynccontextmanager
async def running(box: Box, *services: str) -> AsyncIterator[Path]:
    """The services in a process; its log."""
    path = box.folder / "log"
    with path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *box.command("run", *services), stdout=log, stderr=log, env=box.environment
        )
    try:
        yield path
        assert process.returncode is None, path.read_text()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def said(log: Path, words: bytes) -> bytes:
    if words not in log.read_bytes():
        raise ConnectorError("not yet")
    return words


async def until(act: Callable[[], Awaitable[bytes]]) -> bytes:
    """What it gives once it no longer fails."""
    async with asyncio.timeout(WAIT_S):
        for _ in iter(int, 1):
            with contextlib.suppress(ConnectorError):
                return await act()
            await asyncio.sleep(0)
    raise AssertionError("the timeout raises")


async def collected(bus: MqttBus, enough: Callable[[list[Message]], bool]) -> list[Message]:
    found: list[Message] = []
    async with asyncio.timeout(WAIT_S), bus.subscribe("#", qos=1) as batches:
        async for batch in batches:
            found += batch
            if enough(found):
                break
    return found


def seen(kind: str) -> Callable[[list[Message]], bool]:
    return lambda messages: any(message.topic.startswith(f"mw/v1/{kind}") and message.payload for message in messages)


@played
async def test_the_bus_has_its_password_from_the_vault_and_hears_of_no_secret(quiet_box: Box, broker: Broker) -> None:
    configured(quiet_box, broker)
    await made(quiet_box)
    broker.start(CANARY)
    async with running(quiet_box, "vault", "ingest") as log:
        async with asyncio.timeout(WAIT_S), MqttBus(broker.url, credentials=credentials(CANARY)) as bus:
            everything = seen("reading/"), seen("state/vault"), seen("state/ingest"), seen("audit/vault")
            messages = await collected(bus, lambda found: all(one(found) for one in everything))
        # The password changes, in the broker and in the vault: nobody starts the services again.
        await put(quiet_box, SECOND)
        broker.stop()
        broker.start(SECOND)
        async with asyncio.timeout(WAIT_S), MqttBus(broker.url, credentials=credentials(SECOND)) as bus:
            messages += await collected(bus, seen("reading/"))
    states = [codec.decode(Kind.STATE, one.payload, 0) for one in messages if one.topic == topics.state("vault")]
    assert any(isinstance(state, State) and state.detail.get("open") is True for state in states)
    (audit, *_) = [codec.decode(Kind.AUDIT, one.payload, 0) for one in messages if one.topic == "mw/v1/audit/vault"]
    assert isinstance(audit, Audit)
    for canary in (CANARY.encode(), SECOND.encode()):
        assert not [message.topic for message in messages if canary in message.payload]
        assert canary not in log.read_bytes()
        assert not [path for path in quiet_box.folder.rglob("*") if path.is_file() and canary in path.read_bytes()]


@played
async def test_neither_configuration_nor_doctor_show_one(quiet_box: Box, broker: Broker) -> None:
    configured(quiet_box, broker)
    await made(quiet_box)
    told = ""
    for words in (["config", "show"], ["config", "check"], ["doctor"], ["vault", "status"], ["vault", "audit", "show"]):
        told += "".join((await quiet_box.run(*words))[1:])
    assert "mqtt/plant" in told
    assert CANARY not in told


@played
async def test_a_wrong_password_is_told_and_not_shown(quiet_box: Box, broker: Broker) -> None:
    configured(quiet_box, broker)
    await made(quiet_box, SECOND)
    broker.start(CANARY)
    async with running(quiet_box, "vault", "ingest") as log:
        await until(lambda: said(log, b"refuses us"))
    assert SECOND.encode() not in log.read_bytes()


@played
async def test_a_session_without_its_password_says_why() -> None:
    async def none() -> tuple[str, bytes]:
        raise BusError("no password for 'box': no vault answers", "Start it.")

    async with MqttBus("unix:/nowhere/b.sock", credentials=none) as bus:
        with pytest.raises(BusError, match="no vault answers"):
            await bus.wait_connected(1)


@played
async def test_a_configuration_that_names_secrets_wants_a_vault(quiet_box: Box, broker: Broker) -> None:
    configured(quiet_box, broker)
    code, _, errors = await quiet_box.run("run", "ingest")
    assert code == 2
    assert f"{quiet_box.config}:" in errors
    assert "bus.password: 'mqtt/plant' is a secret's name, and there is no vault" in errors
    assert "millwright vault init, then millwright vault put mqtt/plant" in errors


@played
async def test_a_vault_that_does_not_open_stops_nobody_and_opens_when_it_is_mended(quiet_box: Box, box: Box) -> None:
    """It was bound by one backend, and the configuration allows another only: as if the box had changed."""
    configured(quiet_box, None)
    await made(quiet_box)
    with quiet_box.config.open("a") as config:
        config.write(f'[bus]\nurl = "{quiet_box.url}"\n')
    text = quiet_box.config.read_text()
    quiet_box.config.write_text(text.replace('backend = "plain"', 'backend = "fingerprint"'))
    async with running(quiet_box, "vault", "ingest"), asyncio.timeout(WAIT_S), MqttBus(quiet_box.url) as bus:
        messages = await collected(bus, lambda found: seen("reading/")(found) and seen("state/vault")(found))
        (message, *_) = [one for one in messages if one.topic == topics.state("vault")]
        state = codec.decode(Kind.STATE, message.payload, 0)
        assert isinstance(state, State)
        assert state.detail["open"] is False
        assert "bound to plain" in state.detail["trouble"]
        code, _, errors = await quiet_box.run("vault", "get", "mqtt/plant")
        assert code == 5
        assert "millwright vault recover" in errors
        quiet_box.config.write_text(text)  # of the command only: the service has read its own already
        (quiet_box.folder / "state/vault/vault.1").touch()
        code, output, errors = await quiet_box.run("doctor")
        assert "fail vault: the vault is bound to plain" in output


@played
async def test_one_that_is_recovered_opens_in_the_service_that_runs(quiet_box: Box, box: Box) -> None:
    configured(quiet_box, None)
    await made(quiet_box)
    with quiet_box.config.open("a") as config:
        config.write(f'[bus]\nurl = "{quiet_box.url}"\n')
    files = [quiet_box.folder / "state/vault" / name for name in ("vault.1", "vault.2")]
    whole = [path.read_bytes() for path in files]
    for path in files:
        path.write_bytes(b"\0" * 100)
    keeper = client.by_socket(quiet_box.folder / "run/vault.sock")
    async with running(quiet_box, "vault"), asyncio.timeout(WAIT_S), MqttBus(quiet_box.url) as bus:
        (message, *_) = [one for one in await collected(bus, seen("state/vault")) if one.topic == topics.state("vault")]
        state = codec.decode(Kind.STATE, message.payload, 0)
        assert isinstance(state, State)
        assert "damaged" in state.detail["trouble"]
        for path, content in zip(files, whole, strict=True):
            path.write_bytes(content)

        def is_open(messages: list[Message]) -> bool:
            states = [
                codec.decode(Kind.STATE, one.payload, 0) for one in messages if one.topic == topics.state("vault")
            ]
            return any(isinstance(one, State) and one.detail.get("open") for one in states)

        await collected(bus, is_open)
        assert (await asyncio.to_thread(keeper.get, "mqtt/plant")).reveal() == CANARY.encode()


class TestConnectors:
    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        host: str = "plc"
        password: VaultName | None = None

    def given(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> Reveal:
        """The way to secrets that a connector with a password is made with."""
        configured(box, None)
        config, document = load(box.config)
        plugin = SimpleNamespace(Settings=self.Settings, create=lambda settings, reveal: reveal)
        monkeypatch.setattr(plugins, "load", lambda package, name: plugin)
        made: Any = connecting.connector("opcua", self.Settings(), assembly.means(config, document, lambda _: None))
        given: Reveal = made  # as create does
        return given

    @played
    async def test_one_that_declares_a_secret_is_given_the_way_to_it(
        self, quiet_box: Box, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reveal = self.given(quiet_box, monkeypatch)
        monkeypatch.undo()
        await made(quiet_box)
        async with running(quiet_box, "vault"), asyncio.timeout(WAIT_S):
            assert await until(lambda: reveal(VaultName("mqtt/plant"))) == CANARY.encode()
            with pytest.raises(ConnectorError, match="mqtt/none"):
                await reveal(VaultName("mqtt/none"))

    @played
    async def test_without_a_vault_that_runs_it_waits_like_for_any_source(
        self, quiet_box: Box, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConnectorError, match="no vault answers") as caught:
            await self.given(quiet_box, monkeypatch)(VaultName("mqtt/plant"))
        assert caught.value.remedy


class TestDoctor:
    def found(self, box: Box) -> list[findings.Finding]:
        config, document = load(box.config)
        return list(findings.vault(findings.Scene(config, document, None, None, BusError("none"), 0)))

    @played
    async def test_none_that_is_needed_is_a_fault(self, quiet_box: Box, broker: Broker) -> None:
        configured(quiet_box, None)
        (one,) = self.found(quiet_box)
        assert (one.status, one.detail) == ("ok", "none was made, and no secret is named")
        configured(quiet_box, broker)
        (one,) = self.found(quiet_box)
        assert one.status == "fail"
        assert "mqtt/plant" in one.detail
        assert "millwright vault init" in one.remedy

    @played
    async def test_one_that_opens_is_told_with_its_limits(self, quiet_box: Box) -> None:
        configured(quiet_box, None)
        await made(quiet_box)
        one = self.found(quiet_box)[0]
        assert one.status == "warn"
        assert "bound by 'plain', 2 secrets; does not protect from" in one.detail

    @played
    async def test_one_that_does_not_open_is_a_fault_with_its_reason(self, quiet_box: Box) -> None:
        configured(quiet_box, None)
        await made(quiet_box)
        configured(quiet_box, None, "fingerprint")
        one = self.found(quiet_box)[0]
        assert (one.status, "bound to plain" in one.detail, "recover" in one.remedy) == ("fail", True, True)

    @played
    async def test_its_settings_are_checked(self, quiet_box: Box) -> None:
        configured(quiet_box, None)
        with quiet_box.config.open("a") as config:
            config.write("[vault.plain]\nx = 1\n")
        config_, document = load(quiet_box.config)
        with pytest.raises(ConfigError, match=r"vault\.plain\.x: there is no such key"):
            assembly.build(config_, document, ["vault"])


def test_the_secret_of_a_request_is_in_no_traceback() -> None:
    """What Python prints of an error shows lines of source, and no values."""
    script = (
        "from pathlib import Path\nfrom appliance.vault import client\nfrom appliance.vault.secret import Secret\n"
        f"client.by_socket(Path('/nowhere')).put('a/b', Secret(bytes.fromhex('{CANARY.encode().hex()}')))\n"
    )
    done = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True, check=False)
    assert b"no vault answers" in done.stderr
    assert CANARY.encode() not in done.stderr
    assert CANARY not in json.dumps(repr(Secret(CANARY.encode())))
