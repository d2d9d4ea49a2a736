"""Our own QoS 1 messages, from `publish` until the broker has acknowledged them. Pure; bounded in number and bytes."""

from collections import deque
from collections.abc import Iterable

from appliance.bus.packets import Joiner
from appliance.bus.port import MAX_UNACKNOWLEDGED, Message
from appliance.errors import BusError

MAX_BYTES = 64 << 20  # of payload, kept for a broker that is away
WINDOW = 4096  # messages on their way at once
WINDOW_BYTES = 4 << 20
FIRST_ID, _LAST_ID = 1024, 65_535  # those below are the session's, for SUBSCRIBE and UNSUBSCRIBE


class Outgoing:
    """`add`, then send what `ready` returns; after a reconnection everything unacknowledged is ready again.

    The loops are the price of a message of QoS 1: they call nothing that they need not.
    """

    def __init__(self, joiner: Joiner, limit: int = MAX_UNACKNOWLEDGED, limit_bytes: int = MAX_BYTES) -> None:
        self._joiner, self._limit, self._limit_bytes = joiner, limit, limit_bytes
        self._waiting: deque[tuple[Message, int]] = deque()  # with the packet id it was sent under before, or 0
        self._sent: dict[int, Message] = {}  # by packet id, in order
        self._bytes = self._sent_bytes = 0
        self._next_id = FIRST_ID

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def add(self, message: Message) -> None:
        """BusError when the session holds all it may."""
        size = len(message.payload)
        if len(self) >= self._limit or self._bytes + size > self._limit_bytes:
            raise BusError(
                f"{len(self)} messages of QoS 1 ({self._bytes >> 10} KiB) wait for the broker's acknowledgement",
                "the broker is away or stalled: `millwright doctor` tells which",
            )
        self._joiner.check(message)
        self._bytes += size
        self._waiting.append((message, 0))

    def ready(self) -> bytes:
        """What may leave now, as bytes."""
        parts: list[bytes] = []
        waiting, sent, pieces = self._waiting, self._sent, self._joiner.pieces
        while waiting and len(sent) < WINDOW and self._sent_bytes < WINDOW_BYTES:
            message, packet_id = waiting.popleft()
            again = packet_id > 0
            packet_id = packet_id or self._free_id()
            sent[packet_id] = message
            self._sent_bytes += len(message.payload)
            parts += pieces(message, packet_id, again)
        return b"".join(parts)

    def acknowledge(self, ids: Iterable[int]) -> None:
        """Unknown packet ids are ignored, as they are by stock paho."""
        for packet_id in ids:
            message = self._sent.pop(packet_id, None)
            if message is not None:
                self._bytes -= len(message.payload)
                self._sent_bytes -= len(message.payload)

    def rewind(self) -> None:
        """The connection is lost: what was sent is sent again, first and in order, under its old packet id."""
        self._waiting.extendleft((message, packet_id) for packet_id, message in reversed(self._sent.items()))
        self._sent.clear()
        self._sent_bytes = 0

    def _free_id(self) -> int:
        sent, waiting = self._sent, self._waiting
        while True:
            packet_id = self._next_id
            self._next_id = packet_id + 1 if packet_id < _LAST_ID else FIRST_ID
            if packet_id not in sent and not (waiting and waiting[0][1] and self._is_promised(packet_id)):
                return packet_id

    def _is_promised(self, packet_id: int) -> bool:
        """Does a message that is to be sent again hold this id?"""
        return any(held == packet_id for _, held in self._waiting)
