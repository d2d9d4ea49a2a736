"""MQTT 3.1.1 on the wire, the part that is hot: PUBLISH and PUBACK in both directions. Pure: bytes in, messages out.

Everything else (CONNACK, SUBACK, PINGRESP, QoS 2) is split off as raw packets for the session's owner.
"""

import struct
import sys
from array import array
from collections.abc import Sequence

from appliance.bus.port import MAX_PAYLOAD, Message
from appliance.errors import BusError

PUBLISH, PUBACK = 0x30, 0x40
RETAIN, QOS_1, QOS_2, DUP = 0x01, 0x02, 0x04, 0x08
MAX_TOPIC = 65_535  # bytes, by the protocol
MAX_CONTROL = 65_536  # bytes of a packet that is no PUBLISH: a SUBACK is one byte a filter
MAX_CACHED_TOPICS = 16_384
LONG = 16_384  # bytes from which on a packet's length takes three bytes

_KIND_AND_QOS = 0xF0 | QOS_1 | QOS_2
_RUN = 8  # messages of one length in a row, below which cutting them as a run is not worth the try
_MORE = 0x80  # in a byte of the length: another one follows


class ProtocolError(Exception):
    """The bytes are no MQTT: the connection is beyond repair."""


class Splitter:
    """Cuts a byte stream into messages. `feed` adds to the public lists, their reader empties them with `clear`."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self._max_payload = max(max_payload, LONG)
        self.topics: dict[bytes, str] = {}
        self._heads: dict[bytes, tuple[str, int]] = {}  # the bytes before a payload -> its topic and its length
        self.clear()
        self.restart()

    def clear(self) -> None:
        self.messages: list[Message] = []
        self.ids: list[int] = []  # packet ids of the QoS 1 messages, in the order of `messages`
        self.acknowledged: list[int] = []  # packet ids of our own
        self.too_large: list[tuple[str, int]] = []  # topic and packet id (0 for QoS 0) of what was discarded
        self.others: list[tuple[int, bytes]] = []  # first byte and body of every other packet
        self.fresh: list[str] = []  # topics that were not in `topics` before

    def forget_topics(self) -> None:
        """All topics are fresh again."""
        self.topics.clear()
        self._heads.clear()

    def restart(self) -> None:
        """A new connection: what the last one began will not be finished."""
        self._parts: list[bytes] = []  # of an incomplete packet
        self._missing = 0  # bytes it lacks; 0 or less while not even its length is known
        self._discarding = 0  # bytes still to come of a message that is too large
        self._discarded = ("", 0)

    def feed(self, data: bytes) -> None:
        """Take bytes as they come, cut anywhere. ProtocolError when they are no MQTT."""
        if self._discarding:
            data = self._discard(data)
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        if data:
            self._split(data)

    def _split(self, data: bytes) -> None:  # noqa: C901 - the hot loop: a call a message would cost a third more
        message, append, get, topics = Message, self.messages.append, self._heads.get, self.topics
        position, end, stop = 0, len(data), 0
        head, width = 0, 0  # length of the last message's head; the same, once two in a row had it
        may_run = True
        try:
            while True:
                # Messages of one kind follow each other: the bytes before the payload, taken as one key, are known.
                if width and (known := get(data[position : position + width])):
                    start = position + width
                    stop = start + known[1]
                    if stop > end:
                        if start <= end:
                            break
                        width = 0  # the key was cut short by the end of the data, and is a shorter packet's head
                    elif may_run:
                        start, position = position, self._split_run(data, position, width, known[1])
                        may_run = position - start >= _RUN * (stop - start)
                    else:
                        append(message(known[0], data[start:stop]))
                        position = stop
                    continue
                first, size = data[position], data[position + 1]
                if size < _MORE:
                    start = position + 2
                elif (high := data[position + 2]) < _MORE:
                    size += (high - 1) << 7
                    start = position + 3
                else:
                    start, size = _long_size(data, position)
                    if size > self._max_payload and self._is_too_large(first, data, start, size):
                        position = self._begin_discard(first, data, start, size)
                        continue
                stop = start + size
                if stop > end:
                    break
                if first == PUBLISH:
                    body = start + 2 + (data[start] << 8) + data[start + 1]
                    if body > stop:
                        raise ProtocolError("a topic is longer than its packet")
                    try:
                        topic = topics[data[start + 2 : body]]
                    except KeyError:
                        topic = self._learn(data[start + 2 : body])
                    append(message(topic, data[body:stop]))
                    if head == body - position:
                        width = head
                        self._remember(data[position:body], topic, stop - body)
                    else:
                        head, width = body - position, 0
                elif first & _KIND_AND_QOS == PUBLISH | QOS_1:
                    self._take_qos_1(first, data, start, stop)
                else:
                    self._take(first, data[start:stop])
                position = stop
        except IndexError:
            stop = position  # the packet's length, or the topic's of a large one, is not here yet
        if position < end:
            self._parts.append(data[position:])
            self._missing = stop - end

    def _split_run(self, data: bytes, position: int, width: int, size: int) -> int:
        """The position behind a run of messages all of one length, as devices send them: two thirds the price."""
        append, get, count = self.messages.append, self._heads.get, (len(data) - position) // (width + size)
        run = memoryview(data)[position : position + count * (width + size)]
        for head, payload in struct.iter_unpack(f"{width}s{size}s", run):
            known = get(head)
            if known is None or known[1] != size:
                break
            append(Message(known[0], payload))
            position += width + size
        return position

    def _remember(self, head: bytes, topic: str, size: int) -> None:
        if len(self._heads) >= MAX_CACHED_TOPICS:
            self._heads.clear()
        self._heads[head] = (topic, size)

    def _take_qos_1(self, first: int, data: bytes, start: int, stop: int) -> None:
        name = start + 2
        body = name + 2 + (data[start] << 8 | data[start + 1]) if stop - start > 1 else stop + 1
        if body > stop:
            raise ProtocolError("a topic is longer than its packet")
        topic, packet_id = data[name : body - 2], data[body - 2] << 8 | data[body - 1]
        if not packet_id:
            raise ProtocolError("packet id 0")
        self.ids.append(packet_id)
        text = self.topics.get(topic) or self._learn(topic)
        self.messages.append(Message(text, data[body:stop], 1, first & RETAIN == RETAIN))

    def _take(self, first: int, body: bytes) -> None:
        """One whole packet that is neither a plain message of QoS 0 nor one of QoS 1."""
        kind = first & 0xF0
        if kind == PUBACK:
            if len(body) != 2:
                raise ProtocolError("an acknowledgement is not two bytes long")
            self.acknowledged.append(body[0] << 8 | body[1])
        elif first & _KIND_AND_QOS == PUBLISH:
            self._take_unusual(first, body)
        elif len(body) > MAX_CONTROL and kind != PUBLISH:
            raise ProtocolError(f"a control packet of {len(body)} bytes")
        else:
            self.others.append((first, body))

    def _take_unusual(self, first: int, body: bytes) -> None:
        """QoS 0, retained or with a DUP bit that means nothing."""
        if len(body) < 2 or len(body) < (stop := 2 + (body[0] << 8 | body[1])):
            raise ProtocolError("a topic is longer than its packet")
        text = self.topics.get(body[2:stop]) or self._learn(body[2:stop])
        self.messages.append(Message(text, body[stop:], 0, first & RETAIN == RETAIN))

    def _learn(self, topic: bytes) -> str:
        """The topic as text, remembered. What is no UTF-8 stays visible and will be refused by the grammar."""
        if not topic:
            raise ProtocolError("a message without a topic")
        if len(self.topics) >= MAX_CACHED_TOPICS:
            self.forget_topics()
        text = self.topics[topic] = topic.decode("utf-8", "backslashreplace")
        self.fresh.append(text)
        return text

    def _is_too_large(self, first: int, data: bytes, start: int, size: int) -> bool:
        """IndexError while the topic's length is not here yet."""
        if first & 0xF0 != PUBLISH:
            raise ProtocolError(f"a control packet of {size} bytes")
        head = 2 + (data[start] << 8 | data[start + 1]) + (2 if first & (QOS_1 | QOS_2) else 0)
        return size - head > self._max_payload

    def _begin_discard(self, first: int, data: bytes, start: int, size: int) -> int:
        """The position behind what is here of the message. IndexError while its head is not all here."""
        body = start + 2 + (data[start] << 8 | data[start + 1])
        packet_id = data[body] << 8 | data[body + 1] if first & QOS_1 else data[body - 1] & 0
        topic = data[start + 2 : body]
        self._discarded = (topic.decode("utf-8", "backslashreplace"), packet_id)
        self._discarding = max(0, start + size - len(data))
        if not self._discarding:
            self.too_large.append(self._discarded)
        return min(start + size, len(data))

    def _discard(self, data: bytes) -> bytes:
        rest = data[self._discarding :]
        self._discarding = max(0, self._discarding - len(data))
        if not self._discarding:
            self.too_large.append(self._discarded)
        return rest


def _long_size(data: bytes, position: int) -> tuple[int, int]:
    """Start of the body and its length, where the length takes three or four bytes."""
    size = data[position + 1] & 0x7F | (data[position + 2] & 0x7F) << 7
    third = data[position + 3]
    size |= (third & 0x7F) << 14
    if third < _MORE:
        return position + 4, size
    fourth = data[position + 4]
    if fourth >= _MORE:
        raise ProtocolError("a length of more than four bytes")
    return position + 5, size | fourth << 21


class Joiner:
    """Builds packets; remembers the topics it has checked and encoded."""

    def __init__(self) -> None:
        self._names: dict[str, bytes] = {}
        self._heads: dict[int, bytes] = {}  # by length, of QoS 0; of retained messages by its negative
        self._heads_1: dict[int, bytes] = {}  # of QoS 1

    def join(self, messages: Sequence[Message]) -> bytes:
        """QoS 0 messages as one run of bytes. BusError for a topic or payload that no broker takes."""
        parts: list[bytes] = []
        extend, names, heads = parts.extend, self._names, self._heads
        for message in messages:
            topic, payload = message.topic, message.payload
            name = names.get(topic) or self._encode(topic)
            size = len(name) + len(payload)
            head = heads.get(-size if message.retain else size) or self._head(message, size)
            extend((head, name, payload))
        return b"".join(parts)

    def packet(self, message: Message, packet_id: int, *, again: bool) -> bytes:
        """One QoS 1 message."""
        return b"".join(self.pieces(message, packet_id, again))

    def pieces(self, message: Message, packet_id: int, again: bool) -> tuple[bytes, bytes, bytes, bytes]:
        """The same, to be joined with others."""
        name = self._names.get(message.topic) or self._encode(message.topic)
        size = len(name) + 2 + len(message.payload)
        if again or message.retain:
            head = _length_head(PUBLISH | QOS_1 | (RETAIN if message.retain else 0) | (DUP if again else 0), size)
        else:
            head = self._heads_1.get(size) or self._head_1(size)
        return head, name, packet_id.to_bytes(2, "big"), message.payload

    def check(self, message: Message) -> None:
        """BusError for a message that no broker or no consumer would take."""
        if message.topic not in self._names:
            self._encode(message.topic)
        check_payload(message)

    def _encode(self, topic: str) -> bytes:
        encoded = encode_topic(topic)
        if len(self._names) >= MAX_CACHED_TOPICS:
            self._names.clear()
        name = self._names[topic] = len(encoded).to_bytes(2, "big") + encoded
        return name

    def _head_1(self, size: int) -> bytes:
        head = _length_head(PUBLISH | QOS_1, size)
        if size < LONG:
            self._heads_1[size] = head
        return head

    def _head(self, message: Message, size: int) -> bytes:
        check_payload(message)
        head = _length_head(PUBLISH | message.retain, size)
        if size < LONG:
            self._heads[-size if message.retain else size] = head
        return head


def encode_topic(topic: str) -> bytes:
    """BusError for a topic that a message cannot have."""
    encoded = topic.encode("utf-8", "replace")
    if not 0 < len(encoded) <= MAX_TOPIC or any(letter in topic for letter in "+#\0"):
        raise BusError(f"'{topic[:80]}' is no topic to publish to", "1 to 65535 bytes without + # and NUL")
    return encoded


def check_payload(message: Message) -> None:
    if len(message.payload) > MAX_PAYLOAD:
        raise BusError(
            f"a message of {len(message.payload)} bytes for '{message.topic[:80]}' is larger than consumers accept",
            f"send it in pieces of at most {MAX_PAYLOAD} bytes",
        )


def acknowledgements(ids: Sequence[int]) -> bytes:
    """PUBACKs for these packet ids, joined."""
    words = array("I", [PUBACK << 24 | 2 << 16 | packet_id for packet_id in ids])
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


def _length_head(first: int, size: int) -> bytes:
    """The first byte and the length, 7 bits a byte."""
    head = bytearray((first,))
    while size >= _MORE:
        head.append(size & 0x7F | _MORE)
        size >>= 7
    head.append(size)
    return bytes(head)
