"""The bus's end of a connection, over real socket pairs."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from appliance.bus import wire
from appliance.bus.wire import Wire

PATIENCE_S = 20.0


class End:
    """A Wire, what it reads and how it ends."""

    def __init__(self) -> None:
        self.sock, self.peer = socket.socketpair()
        for each in (self.sock, self.peer):
            each.setblocking(False)
        self.taken = bytearray()
        self.lost: list[str] = []
        self.changed = asyncio.Event()
        self.wire = Wire(self.sock, self._read, self._lose, self.changed.set)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def close(self) -> None:
        self.wire.close()
        self.sock.close()
        self.peer.close()

    def _read(self) -> None:
        for chunk in self.wire.chunks():
            self.taken += chunk
        self.changed.set()

    def _lose(self, reason: str) -> None:
        self.lost.append(reason)
        self.wire.close()
        self.changed.set()


def play(scenario: Callable[[End], Awaitable[None]]) -> None:
    async def bounded() -> None:
        end = End()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await scenario(end)
        finally:
            end.close()

    uvloop.run(bounded())


@pytest.mark.parametrize("gap_s", [0.0, 1e9])  # never paced, always paced
def test_everything_arrives_in_order(gap_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BUSY_GAP_S", gap_s)
    sent = bytes(range(256)) * 20_000

    async def scenario(end: End) -> None:
        pouring = asyncio.create_task(asyncio.get_running_loop().sock_sendall(end.peer, sent))
        await end.until(lambda: len(end.taken) == len(sent))
        await pouring
        assert end.taken == sent

    play(scenario)


def test_what_was_sent_before_the_end_is_read_before_it() -> None:
    async def scenario(end: End) -> None:
        end.peer.send(b"last words")
        end.peer.close()
        await end.until(lambda: bool(end.lost))
        assert end.taken == b"last words"
        assert end.lost == ["closed by the broker"]

    play(scenario)


def test_a_write_that_fails_does_not_hide_what_is_still_to_be_read() -> None:
    async def scenario(end: End) -> None:
        end.peer.send(b"last words")
        end.peer.close()
        end.wire.write(b"x")
        end.wire.flush()
        assert end.lost == []
        await end.until(lambda: bool(end.lost))
        assert end.taken == b"last words"

    play(scenario)


def test_more_than_the_socket_takes_leaves_when_the_peer_reads() -> None:
    async def scenario(end: End) -> None:
        parts = [bytes([number % 256]) * 30_000 for number in range(100)]
        for part in parts:
            end.wire.write(part)
        assert end.wire.backlog > 0
        arrived = bytearray()
        while len(arrived) < 3_000_000:
            arrived += await asyncio.get_running_loop().sock_recv(end.peer, 1 << 16)
        await end.until(lambda: end.wire.backlog == 0)
        assert arrived == b"".join(parts)

    play(scenario)


def test_a_paused_wire_reads_nothing_until_it_is_resumed() -> None:
    async def scenario(end: End) -> None:
        end.wire.pause()
        end.peer.send(b"x")
        for _ in range(20):
            await asyncio.sleep(0)
        assert end.taken == b""
        end.wire.resume()
        await end.until(lambda: end.taken == b"x")
        end.peer.send(b"y")
        await end.until(lambda: end.taken == b"xy")

    play(scenario)


def test_after_a_busy_time_a_lone_message_wakes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BUSY_GAP_S", 1e9)

    async def scenario(end: End) -> None:
        for number in range(50):
            end.peer.send(b"x")
            await end.until(lambda: len(end.taken) > number)  # noqa: B023 - awaited within its turn
        await end.until(lambda: len(end.taken) == 50)

    play(scenario)
