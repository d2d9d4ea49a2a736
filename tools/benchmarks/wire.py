"""MQTT 3.1.1 by hand, QoS 0 only: a load generator that costs next to nothing beside what it measures."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

RECEIVE_BYTES = 1 << 18


def publish(topic: str, payload: bytes) -> bytes:
    """A PUBLISH packet, QoS 0."""
    name = topic.encode()
    return _packet(0x30, len(name).to_bytes(2, "big") + name + payload)


def split(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Whole packets (first byte, body), taken off the front of `buffer`."""
    position = 0
    try:
        while (header := _header(buffer, position)) is not None:
            start, end = header
            if end > len(buffer):
                return
            first, position = buffer[position], end
            yield first, bytes(buffer[start:end])
    finally:
        del buffer[:position]


class Wire:
    """One connection over a unix socket; `receive` never blocks, `send` blocks as long as the broker does not read."""

    def __init__(self, path: Path, client: str) -> None:
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        name = client.encode()
        variable = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
        self.send(_packet(0x10, variable))
        self._expect(0x20)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, packets: bytes | memoryview) -> None:
        self._socket.sendall(packets)

    def subscribe(self, filter_: str) -> None:
        name = filter_.encode()
        self.send(_packet(0x82, b"\x00\x01" + len(name).to_bytes(2, "big") + name + b"\x00"))
        self._expect(0x90)

    def receive(self) -> list[tuple[str, bytes]]:
        """(topic, payload) of all that has arrived."""
        with contextlib.suppress(BlockingIOError):
            while data := self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT):
                self._buffer += data
                if len(data) < RECEIVE_BYTES:
                    break
        return [_message(body) for first, body in split(self._buffer) if first & 0xF0 == 0x30]

    def close(self) -> None:
        self._socket.close()

    def _expect(self, kind: int) -> None:
        while True:
            for first, _ in split(self._buffer):
                if first == kind:
                    return
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the broker closed the connection")
            self._buffer += data


def _packet(first: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while True:
        rest, low = divmod(rest, 128)
        length.append(low | (0x80 if rest else 0))
        if not rest:
            return bytes([first]) + bytes(length) + body


def _header(buffer: bytearray, position: int) -> tuple[int, int] | None:
    """Where the body starts and ends; None while the length is still on its way."""
    length = shift = 0
    for at in range(position + 1, min(position + 5, len(buffer))):
        length |= (buffer[at] & 0x7F) << shift
        if buffer[at] < 0x80:
            return at + 1, at + 1 + length
        shift += 7
    return None


def _message(body: bytes) -> tuple[str, bytes]:
    end = 2 + int.from_bytes(body[:2], "big")
    return body[2:end].decode(), body[end:]
