"""Devices reach the bus over TLS with a certificate of this box, each only where it may: real mosquitto and clients."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.bus.broker import MosquittoBroker
from appliance.bus.mqtt import MqttBus
from appliance.config.places import Paths
from appliance.config.schema import Broker
from appliance.services.admission import FOLDER, Admission
from appliance.vault.certificates import authority, registry
from appliance.vault.certificates.holdings import AUTHORITY, SERVER, Holdings
from appliance.vault.certificates.registry import Device
from appliance.vault.memory import MemoryKeeper

PATIENCE_S = 30.0
MOSQUITTO_PUB = shutil.which("mosquitto_pub") or "mosquitto_pub"
MOSQUITTO_SUB = shutil.which("mosquitto_sub") or "mosquitto_sub"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Site:
    """A box with a broker whose door to devices is open."""

    folder: Path
    port: int = field(default_factory=free_port)
    now: int = field(default_factory=time.time_ns)

    def __post_init__(self) -> None:
        self.keeper = MemoryKeeper(lambda: self.now)
        self.paths = Paths(state=self.folder / "state", run=self.folder / "run")
        self.settings = Broker(tls_port=self.port, tls_address="127.0.0.1", tls_names=["localhost", "127.0.0.1"])
        self.admission = Admission(self.keeper, self.paths.state, self.settings, lambda: self.now)
        self.holdings = Holdings(self.keeper, "box", lambda: self.now)

    @property
    def registry(self) -> Path:
        return self.paths.state / FOLDER

    def certify(self, name: str, *publish: str, issuer: authority.Authority | None = None) -> Path:
        """A folder with what the device is given."""
        issuer = issuer or self.holdings.authority()
        key = authority.new_key()
        certificate = authority.issue_client(issuer, key.public_key(), name, self.now)
        device = Device(name, publish=publish)
        registered = registry.admitted(registry.load(self.registry), device, certificate.serial_number, self.now)
        registry.save(self.registry, registered)
        return self.hand_out(name, authority.key_pem(key), authority.pem(certificate))

    def hand_out(self, name: str, key: bytes, certificate: bytes) -> Path:
        given = self.folder / name
        given.mkdir()
        (given / "key.pem").write_bytes(key)
        (given / "certificate.pem").write_bytes(certificate)
        (given / "ca.pem").write_bytes(authority.pem(self.holdings.authority().certificate))
        return given

    def publish(self, given: Path | None, topic: str, message: str) -> subprocess.CompletedProcess[str]:
        """What a device does, with mosquitto's own client."""
        trust = given or next(self.folder.glob("*/ca.pem")).parent
        own = ["--cert", str(given / "certificate.pem"), "--key", str(given / "key.pem")] if given else []
        door = ["-h", "localhost", "-p", str(self.port), "--cafile", str(trust / "ca.pem")]
        return subprocess.run(
            [MOSQUITTO_PUB, *door, *own, "-q", "1", "-t", topic, "-m", message],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def certify_listener(self, name: str, *subscribe: str) -> Path:
        given = self.certify(name)
        registered = registry.load(self.registry)
        device = Device(name, subscribe=subscribe, serials=registered.devices[name].serials, until=self.now)
        devices = {**registered.devices, name: device}
        registry.save(self.registry, registry.Registered(devices=devices))
        return given

    def listen(self, given: Path, topic: str, *options: str) -> str:
        """With mosquitto's own client, in a session that the broker keeps."""
        own = ["--cert", str(given / "certificate.pem"), "--key", str(given / "key.pem")]
        door = ["-h", "localhost", "-p", str(self.port), "--cafile", str(given / "ca.pem")]
        done = subprocess.run(
            [MOSQUITTO_SUB, *door, *own, "-i", given.name, "-c", "-q", "1", "-v", "-t", topic, *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        return done.stdout

    @asynccontextmanager
    async def open(self) -> AsyncIterator[MosquittoBroker]:
        ready = asyncio.Event()

        class Pulse:
            def ready(self) -> None:
                ready.set()

            def beat(self) -> None:
                return None

        broker = MosquittoBroker(self.paths, self.settings, self.admission.door)
        task = asyncio.create_task(broker.run(Pulse()))
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
            if task.done():
                task.result()
            assert ready.is_set()
            yield broker
        finally:
            waiting.cancel()
            task.cancel()
            await asyncio.wait([task, waiting])

    async def heard(self, broker: MosquittoBroker, *publishing: tuple[Path | None, str, str]) -> list[str]:
        """Messages that arrive inside, up to one that we send ourselves at the end."""
        heard: list[str] = []
        async with MqttBus(f"unix:{self.paths.run}/mqtt.sock") as bus, asyncio.timeout(PATIENCE_S):
            await bus.wait_connected(PATIENCE_S)
            async with bus.subscribe("mw/#", qos=1) as batches:
                for given, topic, message in publishing:
                    await asyncio.to_thread(self.publish, given, topic, message)
                bus.publish("mw/v1/reading/end", b"end", qos=1)
                async for batch in batches:
                    heard += [f"{one.topic} {bytes(one.payload).decode()}" for one in batch]
                    if heard[-1].endswith(" end"):
                        return heard[:-1]
        raise AssertionError("the bus ended")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_device_speaks_for_its_own_asset_only(site: Site) -> None:
    pump = site.certify("pump-3", "mw/v1/reading/line1/pump", "mw/v1/reading/line1/pump/#")

    async def scenario() -> list[str]:
        async with site.open() as broker:
            return await site.heard(
                broker,
                (pump, "mw/v1/reading/line1/pump", "mine"),
                (pump, "mw/v1/reading/line1/pump/bearing", "mine too"),
                (pump, "mw/v1/reading/line1/press", "another's"),
                (pump, "mw/v1/command/update/models/1", "sabotage"),
            )

    assert asyncio.run(scenario()) == ["mw/v1/reading/line1/pump mine", "mw/v1/reading/line1/pump/bearing mine too"]


def test_nobody_comes_in_without_a_certificate_of_this_box(site: Site, tmp_path: Path) -> None:
    site.certify("pump-3", "mw/v1/reading/#")
    stranger = authority.found("another box", site.now)
    key = authority.new_key()
    forged = authority.pem(authority.issue_client(stranger, key.public_key(), "pump-3", site.now))
    other = site.hand_out("stranger", authority.key_pem(key), forged)

    async def scenario() -> tuple[list[str], int, int]:
        async with site.open() as broker:
            heard = await site.heard(broker, (None, "mw/v1/reading/a", "none"), (other, "mw/v1/reading/a", "forged"))
            none = await asyncio.to_thread(site.publish, None, "mw/v1/reading/a", "x")
            wrong = await asyncio.to_thread(site.publish, other, "mw/v1/reading/a", "x")
            return heard, none.returncode, wrong.returncode

    heard, none, wrong = asyncio.run(scenario())
    assert heard == []
    assert none != 0
    assert wrong != 0


def test_a_device_is_admitted_and_revoked_while_the_broker_runs(site: Site) -> None:
    site.certify("pump-1", "mw/v1/reading/line1/pump")

    async def scenario() -> tuple[list[str], list[str]]:
        async with site.open() as broker:
            press = site.certify("press-2", "mw/v1/reading/line1/press")
            await read_again(site, broker, "press-2", present=True)
            admitted = await site.heard(broker, (press, "mw/v1/reading/line1/press", "hello"))
            registry.save(site.registry, registry.without(registry.load(site.registry), "press-2"))
            await read_again(site, broker, "press-2", present=False)
            return admitted, await site.heard(broker, (press, "mw/v1/reading/line1/press", "still here"))

    admitted, revoked = asyncio.run(scenario())
    assert admitted == ["mw/v1/reading/line1/press hello"]
    assert revoked == []


async def read_again(site: Site, broker: MosquittoBroker, name: str, *, present: bool) -> None:
    """Until the broker's access list has followed the registry, and mosquitto the list."""
    access = site.paths.run / "door" / "access"
    async with asyncio.timeout(PATIENCE_S):
        while (f"user {name}\n" in access.read_text()) != present:  # noqa: ASYNC110  # a file has no event
            await asyncio.sleep(0)
    # mosquitto reads its files between two packets: an answer to a new connection comes after that.
    await site.heard(broker)


def test_the_key_is_in_the_vault_and_in_no_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    async def scenario() -> None:
        async with site.open() as broker:
            await site.heard(broker)

    site.certify("pump-1", "mw/v1/reading/line1/pump")
    asyncio.run(scenario())
    assert {entry.name for entry in site.keeper.entries()} == {AUTHORITY, SERVER}
    assert "PRIVATE KEY" not in caplog.text
    assert "PRIVATE KEY" not in repr(asyncio.run(site.admission.door()))
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in site.paths.state.rglob("*") if path.is_file())
    assert (site.paths.run.stat().st_mode & 0o077) == 0


def test_the_brokers_certificate_is_renewed_before_it_ends_and_devices_trust_it(site: Site) -> None:
    first = asyncio.run(site.admission.door())
    site.now += 300 * 86_400 * 1_000_000_000
    second = asyncio.run(site.admission.door())
    assert first.certificates != second.certificates
    assert first.authority == second.authority
    trust = ssl.create_default_context(cadata=first.authority.decode())
    assert trust.get_ca_certs()[0]["notAfter"].endswith("9999 GMT")


class TestWhoWasAway:
    """The door's access list holds for every listener: what the broker keeps for a session passes it once more."""

    def test_a_service_of_this_box_gets_what_was_kept_for_it(self, site: Site) -> None:
        pump = site.certify("pump-3", "mw/v1/reading/line1/pump")

        async def scenario() -> list[str]:
            async with site.open() as broker:
                await once(site, "mw-record", "mw/v1/reading/#")
                await site.heard(broker, (pump, "mw/v1/reading/line1/pump", "while you were away"))
                # The access list is read anew while nobody is there.
                site.certify("press-2", "mw/v1/reading/line1/press")
                await read_again(site, broker, "press-2", present=True)
                await site.heard(broker, (pump, "mw/v1/reading/line1/pump", "and later"))
                return await kept(site, "mw-record", "mw/v1/reading/#", "and later")

        got = asyncio.run(scenario())
        assert [one for one in got if one.startswith("mw/v1/reading/line1/pump")] == [
            "mw/v1/reading/line1/pump while you were away",
            "mw/v1/reading/line1/pump and later",
        ]

    def test_a_device_gets_what_it_may_hear(self, site: Site) -> None:
        scada = site.certify_listener("scada", "mw/v1/alarm/#")

        async def scenario() -> str:
            async with site.open() as broker:
                await asyncio.to_thread(site.listen, scada, "mw/#", "-E")
                async with MqttBus(f"unix:{site.paths.run}/mqtt.sock") as bus:
                    await bus.wait_connected(PATIENCE_S)
                    bus.publish("mw/v1/score/line1/pump", b"not for you", qos=1)
                    bus.publish("mw/v1/alarm/line1/pump", b"hot", qos=1)
                    await bus.drain()
                await site.heard(broker)
                return await asyncio.to_thread(site.listen, scada, "mw/#", "-C", "1")

        assert asyncio.run(scenario()) == "mw/v1/alarm/line1/pump hot\n"


async def once(site: Site, client_id: str, topic: str) -> None:
    """A session with a name that subscribes and leaves."""
    async with MqttBus(f"unix:{site.paths.run}/mqtt.sock", client_id=client_id) as bus:
        await bus.wait_connected(PATIENCE_S)
        async with bus.subscribe(topic, qos=1):
            await bus.wait_connected(PATIENCE_S)
            return


async def kept(site: Site, client_id: str, topic: str, last: str) -> list[str]:
    got: list[str] = []
    async with (
        asyncio.timeout(PATIENCE_S),
        MqttBus(f"unix:{site.paths.run}/mqtt.sock", client_id=client_id) as bus,
        bus.subscribe(topic, qos=1) as batches,
    ):
        async for batch in batches:
            got += [f"{one.topic} {bytes(one.payload).decode()}" for one in batch]
            if any(one.endswith(last) for one in got):
                return got
    raise AssertionError("the bus ended")
