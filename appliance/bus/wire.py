"""A connected socket on the event loop: drained in large reads, paced when busy, written in joined packets.

Knows nothing of MQTT. When it is quiet, each arrival wakes the process at once; when bytes keep coming, the socket is
left alone for some milliseconds, because a wake-up costs as much as fifty messages.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator

# Smaller than what a unix socket holds: while the second piece is read the sender fills up again, so that a flood is
# taken in long runs (150,000 instead of 80,000 small messages a second, and a quarter less CPU). It is a whole TLS
# record, too: what OpenSSL has decrypted and kept back would not wake the loop again.
READ_BYTES = 1 << 14
MAX_READS = 64  # in one go, then others have their turn
BUSY_GAP_S = 0.005  # arrivals closer than this start the pacing
PACE_S = 0.005
FULL_PACE_S = 0.002  # where so much comes that those who wait for it should not wait for the pace, too
FULL_BYTES = 1 << 14
WRITE_BYTES = 1 << 16  # of joined packets, then they leave without waiting for the end of the loop's turn

WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """`readable` is called to take the bytes (it iterates `chunks`), `lost` with the reason when the connection ends,
    `written` when nothing is left to send."""

    def __init__(
        self,
        sock: socket.socket,
        readable: Callable[[], None],
        lost: Callable[[str], None],
        written: Callable[[], None],
    ) -> None:
        self._sock, self._descriptor = sock, sock.fileno()
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._readable, self._lost, self._written = readable, lost, written
        self._loop = asyncio.get_running_loop()
        self._output = bytearray()
        self._flush_is_due = self._waits_to_write = self._is_paused = self._is_closed = False
        self._timer: asyncio.Handle | None = None
        self._taken = 0  # bytes of the present read
        self._last = 0.0  # when an arrival woke us
        self._end = ""  # why the connection is over, once that is known
        self._loop.add_reader(self._descriptor, self._on_arrival)

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._output)

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def chunks(self) -> Iterator[bytes]:
        """All that has arrived."""
        for _ in range(MAX_READS):
            try:
                data = self._sock.recv(READ_BYTES)
            except WOULD_BLOCK:
                return
            except OSError as error:
                self._end = str(error)
                return
            if not data:
                self._end = "closed by the broker"
                return
            self._taken += len(data)
            yield data
            if len(data) < READ_BYTES and not self._is_tls:
                return

    def write(self, data: bytes | bytearray) -> None:
        """Send soon, together with what else is written in this turn of the loop."""
        self._output += data
        if self._waits_to_write or self._is_closed:
            return
        if len(self._output) >= WRITE_BYTES:
            self.flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush_when_due)

    def flush(self) -> None:
        """Send what the socket takes now."""
        while self._output and not self._is_closed:
            size = min(len(self._output), WRITE_BYTES)
            try:
                sent = self._sock.send(self._output if size == len(self._output) else self._output[:size])
            except WOULD_BLOCK:
                sent = 0
            except OSError as error:
                self._give_up_writing(str(error))
                return
            del self._output[:sent]
            if sent < size:
                self._wait_to_write(True)
                return
        self._wait_to_write(False)
        self._written()

    def pause(self) -> None:
        """Read no more until `resume`: the sender has to keep the rest."""
        if not self._is_paused:
            self._is_paused = True
            self._stop_reading()

    def resume(self) -> None:
        if self._is_paused and not self._is_closed:
            self._is_paused = False
            self._timer = self._loop.call_soon(self._on_pace)

    def close(self) -> None:
        """Leave the loop. The socket itself is closed by its owner."""
        if not self._is_closed:
            self._wait_to_write(False)
            self._stop_reading()
            self._is_closed = True
            self._output.clear()

    def _on_arrival(self) -> None:
        now, taken = self._loop.time(), self._read()
        if now - self._last < BUSY_GAP_S and self._may_read():
            self._loop.remove_reader(self._descriptor)
            self._pace(taken)
        self._last = now

    def _on_pace(self) -> None:
        self._timer = None
        taken = self._read()
        if not self._may_read():
            return
        if taken:
            self._loop.remove_reader(self._descriptor)
            self._pace(taken)
        else:
            self._loop.add_reader(self._descriptor, self._on_arrival)

    def _pace(self, taken: int) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(FULL_PACE_S if taken > FULL_BYTES else PACE_S, self._on_pace)

    def _may_read(self) -> bool:
        return not (self._is_paused or self._is_closed)

    def _read(self) -> int:
        self._taken = 0
        self._readable()
        if self._end and not self._is_closed:
            self._lost(self._end)
        return self._taken

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush_when_due(self) -> None:
        self._flush_is_due = False
        if not self._waits_to_write:
            self.flush()

    def _wait_to_write(self, wanted: bool) -> None:
        if wanted and not self._waits_to_write:
            self._loop.add_writer(self._descriptor, self.flush)
        elif self._waits_to_write and not wanted:
            self._loop.remove_writer(self._descriptor)
        self._waits_to_write = wanted

    def _give_up_writing(self, reason: str) -> None:
        """The peer takes no more, but what it sent before it went is still to be read."""
        self._output.clear()
        self._wait_to_write(False)
        self._loop.call_soon(self._read_the_rest, reason)

    def _read_the_rest(self, reason: str) -> None:
        while not self._is_closed and not self._end:
            if not self._read():
                self._end = self._end or reason
        if not self._is_closed:
            self._lost(self._end)
