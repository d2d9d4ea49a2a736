"""paho's session with a broker, over a socket that was opened elsewhere. The only module that imports paho.

paho-mqtt 2.2.0 spends 13 to 15 microseconds on a message it receives; its packet state machine and its message objects
are most of that. `Session.loop_read` takes the bytes instead, splits off PUBLISH and PUBACK, and hands every other
packet to paho, which keeps what it is good at: CONNECT, the will, SUBSCRIBE, keepalive. The names it overrides are
private to that release; tests/contract/test_bus_differential.py compares the result with stock paho.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.reasoncodes import ReasonCode

from appliance.bus.outgoing import FIRST_ID
from appliance.bus.packets import ProtocolError, Splitter
from appliance.bus.port import Message

log = logging.getLogger(__name__)

KEEPALIVE_S = 30  # a broker that says nothing for so long is given up
CONNACK = 0  # stands for the packet id in the answer to CONNECT
PONG = -1  # and in the answer to a ping

_REFUSED = 0x80
_PINGRESP = 0xD0


class Carrier(Protocol):
    """What carries the bytes: a Wire."""

    def chunks(self) -> Iterator[bytes]: ...

    def write(self, data: bytes | bytearray) -> None: ...

    def flush(self) -> None: ...


class Events(NamedTuple):
    """What a session reports."""

    answered: Callable[[int, Sequence[str]], None]  # packet id; for each request "" or why it was refused
    ended: Callable[[str], None]  # why the connection is over
    stray: Callable[[Message], None]  # a message of QoS 2, which we never ask for


class Session(paho.Client):
    """paho's session over a socket that was opened elsewhere and belongs to a Wire."""

    def __init__(self, client_id: str, events: Events, *, clean: bool, will: Message | None = None) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean, reconnect_on_failure=False
        )
        self._events = events
        self.on_connect = self._on_connect_answer
        self.on_subscribe = self._on_subscribe_answer
        self.on_disconnect = self._on_end
        self.on_message = self._on_qos_2
        self.connect_async("broker", keepalive=KEEPALIVE_S)
        if will is not None:
            self.will_set(will.topic, will.payload, will.qos, will.retain)
        self.splitter = Splitter()
        self.taken = 0  # bytes of the present read
        self._wire: Carrier | None = None
        self._dialled: socket.socket | None = None

    def open(self, sock: socket.socket, wire: Carrier) -> None:
        """Send CONNECT over a connected socket."""
        self._dialled, self._wire = sock, wire
        self.splitter.restart()
        self.splitter.clear()
        self.reconnect()

    def identify(self, username: str, password: bytes | None) -> None:
        """For the next CONNECT. Called with "" and None it is forgotten."""
        self.username_pw_set(username or None, password)  # type: ignore[arg-type]  # paho sends bytes as they are

    def hang_up(self) -> None:
        """Close the socket without a word: the broker publishes the will."""
        self._sock_close()

    def beat(self, *, is_deaf: bool) -> None:
        """Keepalive. `is_deaf`: we do not read at present, so a missing answer means nothing."""
        if is_deaf:
            self._ping_t = 0.0
            self._last_bytes_received = time.monotonic()
        self.loop_misc()

    def ping(self) -> None:
        """Ask the broker whether it is there."""
        self._send_pingreq()

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        self.taken = 0
        if self._wire is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        feed = self.splitter.feed
        try:
            for chunk in self._wire.chunks():
                self.taken += len(chunk)
                feed(chunk)
        except ProtocolError as error:
            log.error("the broker speaks no MQTT: %s", error)
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_PROTOCOL)
        self._last_bytes_received = time.monotonic()
        for first, body in self.splitter.others:
            if (code := self._hand_over(first, body)) > 0:
                return self._loop_rc_handle(code)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _hand_over(self, first: int, body: bytes) -> MQTTErrorCode:
        blank = self._in_packet
        self._in_packet = {**blank, "command": first, "remaining_length": len(body), "packet": bytearray(body)}
        try:
            code = self._packet_handle()
            if first == _PINGRESP:
                self._events.answered(PONG, ())
            return code
        except MalformedPacket as error:
            log.error("the broker speaks no MQTT: %s", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        finally:
            self._in_packet = blank

    def _create_socket(self) -> Any:
        return self._dialled

    def _sock_send(self, buf: bytes | bytearray) -> int:
        # Control packets are few, and paho closes the socket right after DISCONNECT: no waiting for the loop.
        if self._wire is None:
            raise ConnectionError("not connected")
        self._wire.write(buf)
        self._wire.flush()
        return len(buf)

    def _mid_generate(self) -> int:
        # For SUBSCRIBE and UNSUBSCRIBE; our own messages are numbered by Outgoing, from FIRST_ID on.
        self._last_mid = self._last_mid % (FIRST_ID - 1) + 1
        return self._last_mid

    def _on_connect_answer(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        self._events.answered(CONNACK, [_refusal(code)])

    def _on_subscribe_answer(
        self, _client: Any, _data: Any, packet_id: int, codes: Sequence[ReasonCode], _properties: Any
    ) -> None:
        self._events.answered(packet_id, [_refusal(code) for code in codes])

    def _on_end(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        self._events.ended(str(code))

    def _on_qos_2(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self._events.stray(Message(message.topic, bytes(message.payload), 0, message.retain))


def _refusal(code: ReasonCode) -> str:
    return str(code) if code.value >= _REFUSED else ""
