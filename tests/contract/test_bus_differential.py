"""Our bus and stock paho are given the same bytes and must make the same messages and acknowledgements of them.

The peer plays a broker on one end of a socket pair, plain or TLS; the stream is cut anywhere. Seeds are printed with a
failure; MILLWRIGHT_FUZZ_SEED and MILLWRIGHT_FUZZ_ROUNDS choose others.
"""

import asyncio
import contextlib
import os
import random
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt
import pytest
import uvloop
from paho.mqtt import client as stock
from paho.mqtt.enums import CallbackAPIVersion

from appliance.bus import mqtt, wire
from appliance.bus.address import Address
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import MAX_PAYLOAD

SEED = int(os.environ.get("MILLWRIGHT_FUZZ_SEED", "20261121"))
ROUNDS = int(os.environ.get("MILLWRIGHT_FUZZ_ROUNDS", "400"))
ROUNDS_IN_A_TEST = 50
PATIENCE_S = 20.0
END = "the/end"

CONNACK, SUBACK, UNSUBACK, PINGRESP = 0x20, 0x90, 0xB0, 0xD0
PUBLISH, PUBACK, SUBSCRIBE = 0x30, 0x40, 0x82

Seen = tuple[str, bytes, int, bool]  # topic, payload, QoS, retained


def packet(first: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while True:
        rest, low = divmod(rest, 128)
        length.append(low | (0x80 if rest else 0))
        if not rest:
            return bytes((first,)) + bytes(length) + body


def publish(topic: str, payload: bytes, packet_id: int = 0, retain: bool = False, dup: bool = False) -> bytes:
    name = topic.encode()
    head = len(name).to_bytes(2, "big") + name + (packet_id.to_bytes(2, "big") if packet_id else b"")
    return packet(PUBLISH | (2 if packet_id else 0) | retain | dup << 3, head + payload)


class Script:
    """What one round sends, and in which pieces."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ids = self._random.sample(range(1, 65_536), 200)
        self._sizes = self._random.choice([(0, 300), (195, 205), (0, 20_000), (100, 140), (16_000, 17_000)])
        self._topics = [self._topic() for _ in range(self._random.choice([1, 3, 30]))]
        packets = [self._packet() for _ in range(self._random.randint(1, 120))]
        self.stream = b"".join([*packets, publish(END, b"")])

    def pieces(self) -> list[bytes]:
        longest = self._random.choice([1 if len(self.stream) < 5000 else 700, 50, 700, 5000, 65_536])
        longest = max(longest, len(self.stream) // 400)
        cut, position = [], 0
        while position < len(self.stream):
            size = self._random.randint(1, longest)
            cut.append(self.stream[position : position + size])
            position += size
        return cut

    def _topic(self) -> str:
        levels = self._random.randint(1, 8)
        return "/".join(self._random.choice(["mw", "größe", "a", "x" * 40, "7", "Ω", ""]) + "-" for _ in range(levels))

    def _packet(self) -> bytes:
        kind = self._random.random()
        if kind < 0.03:
            return packet(PINGRESP, b"")
        if kind < 0.06:
            return packet(SUBACK, b"\x03\xe8" + bytes(self._random.randint(1, 3)))
        if kind < 0.08:
            return packet(UNSUBACK, b"\x03\xe9")
        if kind < 0.12:
            return packet(PUBACK, self._random.randint(1, 65_535).to_bytes(2, "big"))
        packet_id = self._ids.pop() if self._random.random() < 0.4 else 0
        dup = packet_id > 0 and self._random.random() < 0.2
        return publish(self._random.choice(self._topics), self._payload(), packet_id, self._random.random() < 0.2, dup)

    def _payload(self) -> bytes:
        if self._random.random() < 0.002:
            return self._random.randbytes(MAX_PAYLOAD + self._random.choice([-1, 0, 1, 70_000]))
        size = self._random.choice([0, self._random.randint(*self._sizes), self._random.randint(*self._sizes)])
        return self._random.randbytes(size)


@dataclass
class Outcome:
    messages: list[Seen] = field(default_factory=list)
    too_large: int = 0
    acknowledged: list[int] = field(default_factory=list)


class Peer:
    """The broker's end of the pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._inbound = bytearray()

    def packets(self) -> list[tuple[int, bytes]]:
        """All whole packets that the client has sent since the last call."""
        # Once the client has left, OpenSSL 3.5 ends the last read with a broken pipe: its own goodbye goes nowhere.
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, BrokenPipeError):
            while data := self._end.recv(65_536):
                self._inbound += data
        found = []
        while len(self._inbound) >= 2 and len(self._inbound) >= 2 + self._inbound[1]:
            size = 2 + self._inbound[1]
            assert self._inbound[1] < 128, "what these clients send is short"
            found.append((self._inbound[0], bytes(self._inbound[2:size])))
            del self._inbound[:size]
        return found

    def send(self, data: bytes) -> bytes:
        """What did not fit."""
        try:
            return data[self._end.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            return data

    def acknowledged(self) -> list[int]:
        return [int.from_bytes(body, "big") for first, body in self.packets() if first == PUBACK]

    def answer(self, first: int, body: bytes) -> None:
        reply = {0x10: packet(CONNACK, b"\0\0"), SUBSCRIBE: packet(SUBACK, body[:2] + b"\1")}[first]
        assert self.send(reply) == b""


# Stock paho


class StockClient(stock.Client):
    """Stock but for the socket, which is given to it."""

    def __init__(self, end: socket.socket, outcome: Outcome) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id="stock")
        self.end, self.is_at_end, self._outcome = end, False, outcome
        self.on_message = self._note
        self.connect_async("peer")

    def _create_socket(self) -> Any:
        return self.end

    def _note(self, _client: Any, _data: Any, message: stock.MQTTMessage) -> None:
        if message.topic == END:
            self.is_at_end = True
        elif len(message.payload) > MAX_PAYLOAD:
            self._outcome.too_large += 1
        else:
            self._outcome.messages.append((message.topic, bytes(message.payload), message.qos, message.retain))

    def read_all(self) -> None:
        while self.end.fileno() >= 0 and (_pending(self.end) or select.select([self.end], [], [], 0)[0]):
            assert self.loop_read() == stock.MQTT_ERR_SUCCESS
            if self.want_write():
                self.loop_write()


def _pending(end: socket.socket) -> int:
    return end.pending() if isinstance(end, ssl.SSLSocket) else 0


def by_stock_paho(script: Script, ends: tuple[socket.socket, socket.socket]) -> Outcome:
    outcome, peer = Outcome(), Peer(ends[1])
    client = StockClient(ends[0], outcome)
    client.reconnect()
    for step in ("CONNECT", "SUBSCRIBE"):
        (sent,) = peer.packets()
        peer.answer(*sent)
        client.read_all()
        if step == "CONNECT":
            client.subscribe("#", 1)
    for piece in script.pieces():
        rest = piece
        while rest:
            rest = peer.send(rest)
            client.read_all()
            outcome.acknowledged += peer.acknowledged()
    assert client.is_at_end
    client.loop_write()
    outcome.acknowledged += peer.acknowledged()
    return outcome


# Ours


async def by_our_bus(script: Script, ends: tuple[socket.socket, socket.socket]) -> Outcome:
    outcome, peer = Outcome(), Peer(ends[1])
    async with asyncio.timeout(PATIENCE_S), MqttBus("unix:/given") as bus, bus.subscribe("#", qos=1) as batches:
        playing = asyncio.create_task(_play(script, peer, outcome))
        async for batch in batches:
            ours = [(each.topic, each.payload, each.qos, each.retain) for each in batch]
            outcome.messages += [seen for seen in ours if seen[0] != END]
            if ours[-1][0] == END:
                break
        await playing
        outcome.too_large = bus.ledger.dropped.pop("too-large", 0)
        assert bus.ledger.dropped == {}
    outcome.acknowledged += peer.acknowledged()
    return outcome


async def _play(script: Script, peer: Peer, outcome: Outcome) -> None:
    for _ in ("CONNECT", "SUBSCRIBE"):
        while not (sent := peer.packets()):  # noqa: ASYNC110 - the other end of a socket has no event
            await asyncio.sleep(0)
        peer.answer(*sent[0])
    for piece in script.pieces():
        rest = piece
        while rest:
            rest = peer.send(rest)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        outcome.acknowledged += peer.acknowledged()


# The comparison


def compare(seed: int, monkeypatch: pytest.MonkeyPatch, pair: Callable[[], tuple[socket.socket, socket.socket]]) -> int:
    """Messages that both made of it."""
    expected = _with(pair(), lambda ends: by_stock_paho(Script(seed), ends))
    ends = pair()

    async def given(_address: Address, _tls: object) -> socket.socket:
        return ends[0]

    monkeypatch.setattr(mqtt, "dial", given)
    got = _with(ends, lambda both: uvloop.run(by_our_bus(Script(seed), both)))
    assert got.messages == expected.messages, f"seed {seed}"
    assert got.too_large == expected.too_large, f"seed {seed}"
    assert sorted(got.acknowledged) == sorted(expected.acknowledged), f"seed {seed}"
    return len(got.messages)


def _with(
    ends: tuple[socket.socket, socket.socket], run: Callable[[tuple[socket.socket, socket.socket]], Outcome]
) -> Outcome:
    with ends[0], ends[1]:
        return run(ends)


def plain_pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key of a peer called localhost, made for this run."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed: apt install openssl")
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "peer.pem", folder / "peer.key"
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    # Python 3.13 takes no authority whose certificate does not say that it may sign; this one vouches for itself.
    names += ["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
    subprocess.run([*command, *names, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


@pytest.fixture
def tls_pair(certificate: tuple[Path, Path]) -> Callable[[], tuple[socket.socket, socket.socket]]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate)
    client = ssl.create_default_context(cafile=str(certificate[0]))

    def make() -> tuple[socket.socket, socket.socket]:
        ours, theirs = plain_pair()
        ends = (
            client.wrap_socket(ours, server_hostname="localhost", do_handshake_on_connect=False),
            server.wrap_socket(theirs, server_side=True, do_handshake_on_connect=False),
        )
        unfinished = list(ends)
        while unfinished:
            for end in unfinished.copy():
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    unfinished.remove(end)
        return ends

    return make


def test_the_release_that_is_compared_is_the_one_that_is_pinned() -> None:
    pins = Path(__file__).resolve().parents[2].joinpath("pyproject.toml").read_text()
    assert f'"paho-mqtt=={paho.mqtt.__version__}"' in pins


@pytest.mark.parametrize("first", range(0, ROUNDS, ROUNDS_IN_A_TEST))
def test_same_bytes_same_messages(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BUSY_GAP_S", 0.0)  # each piece is read by itself
    made = sum(compare(SEED + number, monkeypatch, plain_pair) for number in range(first, first + ROUNDS_IN_A_TEST))
    assert made > ROUNDS_IN_A_TEST


def test_same_bytes_same_messages_when_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(SEED + ROUNDS, SEED + ROUNDS + ROUNDS_IN_A_TEST)
    assert sum(compare(seed, monkeypatch, plain_pair) for seed in seeds) > ROUNDS_IN_A_TEST


@pytest.mark.parametrize("gap_s", [0.0, wire.BUSY_GAP_S])
def test_same_bytes_same_messages_over_tls(
    gap_s: float,
    monkeypatch: pytest.MonkeyPatch,
    tls_pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    monkeypatch.setattr(wire, "BUSY_GAP_S", gap_s)
    seeds = range(SEED + 2 * ROUNDS, SEED + 2 * ROUNDS + ROUNDS_IN_A_TEST)
    assert sum(compare(seed, monkeypatch, tls_pair) for seed in seeds) > ROUNDS_IN_A_TEST
