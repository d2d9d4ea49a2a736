"""Addresses of brokers, and connections over TCP and TLS to a real mosquitto with certificates made for the test."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from appliance.bus.address import Address, parse
from appliance.bus.broker import find_program
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.errors import BusError

PATIENCE_S = 20.0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:/run/mqtt.sock", ("unix", "/run/mqtt.sock", 0)),
        ("mqtt://plant", ("mqtt", "plant", 1883)),
        ("mqtt://10.0.0.7:2000/", ("mqtt", "10.0.0.7", 2000)),
        ("mqtts://[::1]", ("mqtts", "::1", 8883)),
    ],
)
def test_addresses(url: str, expected: tuple[str, str, int]) -> None:
    assert parse(url) == Address(url, *expected)


@pytest.mark.parametrize(
    "url",
    ["", "unix:", "unix:relative", "http://plant", "mqtt://", "mqtt://a:b", "mqtt://a:99999", "mqtt://a/b", "plant"],
)
def test_what_is_no_address_is_told_with_the_forms(url: str) -> None:
    with pytest.raises(BusError, match="is no address of a broker") as caught:
        parse(url)
    assert "unix:/path" in caught.value.remedy


def test_secrets_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(BusError) as caught:
        parse("mqtt://me:hunter2@plant")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("setting", ["ca_file", "cert_file"])
def test_a_file_that_cannot_be_used_is_named(setting: str) -> None:
    with pytest.raises(BusError, match=f"bus.{setting} '/no/such.pem' .*cannot be used"):
        MqttBus("mqtts://plant", **{setting: "/no/such.pem"})


class Authority:
    """Signs certificates for the broker and for the box."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file, self._key = folder / "ca.pem", folder / "ca.key"
        # Python 3.13 takes no authority whose certificate does not say that it may sign.
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._openssl("req", "-x509", "-subj", "/CN=authority", *usage, "-out", self.file, *self._new_key(self._key))

    def sign(self, name: str) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, names = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        self._openssl("req", "-subj", f"/CN={name}", "-out", request, *self._new_key(key))
        signer = ("-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-days", "2", "-extfile", names)
        self._openssl("x509", "-req", "-in", request, "-out", certificate, *signer)
        return certificate, key

    def _new_key(self, key: Path) -> tuple[str | Path, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)

    def _openssl(self, *words: str | Path) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt install openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def listening(folder: Path, *options: str) -> AsyncIterator[int]:
    """The port of a mosquitto on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    file = folder / "mosquitto.conf"
    file.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", "user root", *options]) + "\n")
    child = await asyncio.create_subprocess_exec(
        find_program("mosquitto"), "-c", str(file), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        child.terminate()
        await child.wait()


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await scenario()

    uvloop.run(bounded())


async def round_trip(bus: MqttBus) -> None:
    sent = [Message("a", bytes(size), 1) for size in (0, 200, 16_384, 1 << 20)]
    async with bus, bus.subscribe("a", qos=1) as batches:
        await bus.wait_connected(PATIENCE_S)
        bus.publish_many(sent)
        got: list[Message] = []
        while len(got) < len(sent):
            got += await anext(batches)
        assert got == sent


def test_tcp(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(tmp_path) as port:
            await round_trip(MqttBus(f"mqtt://localhost:{port}"))

    play(scenario)


def test_tls_with_certificates_on_both_sides(tmp_path: Path, authority: Authority) -> None:
    async def scenario() -> None:
        certificate, key = authority.sign("broker")
        ours, our_key = map(str, authority.sign("box"))
        options = [f"cafile {authority.file}", f"certfile {certificate}", f"keyfile {key}", "require_certificate true"]
        async with listening(tmp_path, *options) as port:
            url, trusted = f"mqtts://localhost:{port}", str(authority.file)
            await round_trip(MqttBus(url, ca_file=trusted, cert_file=ours, key_file=our_key))
            async with MqttBus(url) as bus:
                with pytest.raises(BusError, match="CERTIFICATE_VERIFY_FAILED"):
                    await bus.wait_connected(1.0)
            async with MqttBus(url, ca_file=trusted) as bus:
                with pytest.raises(BusError, match="no connection to the broker at"):
                    await bus.wait_connected(0.5)

    play(scenario)


def test_a_port_where_nobody_listens_is_told_at_once_and_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            async with MqttBus(f"mqtt://127.0.0.1:{free.getsockname()[1]}") as bus:
                with pytest.raises(BusError, match="refused"):
                    await bus.wait_connected(0.3)

    play(scenario)


def test_a_peer_that_speaks_no_mqtt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1 and many more words of another protocol\r\n" * 10)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(greet, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            async with MqttBus(f"mqtt://127.0.0.1:{port}") as bus:
                with pytest.raises(BusError, match="no connection to the broker"):
                    await bus.wait_connected(0.5)

    play(scenario)
    assert "no connection to the broker" in caplog.text


def test_a_loss_is_a_warning_only_when_the_next_attempts_fail_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="appliance.bus.mqtt")

    def levels() -> list[str]:
        """Of what was said after it was connected."""
        said = [(record.levelname, record.getMessage()) for record in caplog.records]
        since = next((at for at, (_, text) in enumerate(said) if text.startswith("connected")), len(said))
        return [level for level, text in said[since:] if "trying again" in text]

    async def scenario() -> None:
        async with listening(tmp_path) as port:
            bus = MqttBus(f"mqtt://localhost:{port}")
            await bus.__aenter__()
            await bus.wait_connected(PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while "WARNING" not in levels():  # noqa: ASYNC110  # a log has no event
                await asyncio.sleep(0)
        await bus.__aexit__(None, None, None)

    play(scenario)
    assert levels()[:4] == ["DEBUG", "DEBUG", "DEBUG", "WARNING"]
