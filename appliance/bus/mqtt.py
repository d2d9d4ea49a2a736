"""The bus over a real broker: keeps a Session connected, hands what arrives to the Inbox, sends what is published."""

import asyncio
import logging
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from types import TracebackType
from typing import Self

from appliance.bus.address import dial, explain, parse, tls_context, with_papers
from appliance.bus.inbox import CLAIM_S, Inbox, Subscription
from appliance.bus.outgoing import Outgoing
from appliance.bus.packets import Joiner, acknowledgements
from appliance.bus.port import CAPACITY, Batch, Credentials, Message, Papers
from appliance.bus.session import CONNACK, PONG, Events, Session
from appliance.bus.wire import Wire
from appliance.errors import BusError
from appliance.events.ledger import Ledger
from appliance.runtime.patience import within

log = logging.getLogger(__name__)

TICK_S = 5.0
ANSWER_S = 5.0  # for connecting, and for the broker's answer to CONNECT and SUBSCRIBE
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 2.0
SPARED = 4  # a loss, and the attempts after it, which take 0.4 s, are no warning yet
LAST_WORDS_S = 0.5  # for what is left to send when the session is closed
UNSUBSCRIBE_S = 2.0  # a named session keeps a filter for so long, in case the process is about to end
MAX_OUTPUT = 8 << 20  # bytes of QoS 0 for a broker that does not read
JOINED = 512  # messages built into one run of bytes


class MqttBus:
    """The port over MQTT 3.1.1.

    `client_id` names a session that the broker keeps while we are away (a service); without it the session is forgotten
    when it ends (a tool). The files are PEM, for mqtts; `papers` stand in place of the last two.
    BusError for an address or files that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str = "",
        will: Message | None = None,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        credentials: Credentials | None = None,
        papers: Papers | None = None,
    ) -> None:
        self.ledger = Ledger()
        self._address = parse(url)
        self._tls: ssl.SSLContext | None = None
        if self._address.scheme == "mqtts":
            self._tls = tls_context(ca_file, cert_file, key_file)
        self._ca_file, self._papers = ca_file, papers
        self._is_named = bool(client_id)
        self._credentials = credentials
        events = Events(self._answer, self._hang_up, self._deliver_stray)
        self._session = Session(client_id or f"mw-{secrets.token_hex(8)}", events, clean=not client_id, will=will)
        self._joiner = Joiner()
        self._outgoing = Outgoing(self._joiner)
        self._inbox = Inbox(self.ledger, self._settle, self._resume)
        self._wire: Wire | None = None
        self._answers: dict[int, asyncio.Future[Sequence[str]]] = {}
        self._standing: set[str] = set()  # filters that the broker knows of on this connection
        self._connected = asyncio.Event()
        self._gone = asyncio.Event()  # the opposite
        self._gone.set()
        self._idle = asyncio.Event()
        self._lost: asyncio.Future[str] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._trouble = "it was not tried yet"
        self._told, self._spared, self._short = "", 0, 0

    # The port

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._keeping = self._loop.create_task(self._stay_connected(), name=f"bus {self._address.url}")
        self._keeping.add_done_callback(_tell_defect)
        self._ticking: asyncio.TimerHandle = self._loop.call_later(TICK_S, self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.connected and (kind is None or not issubclass(kind, Exception)):
                await self._say_goodbye()
        finally:
            self._ticking.cancel()
            self._keeping.cancel()
            self._hang_up("the session was closed")
        await asyncio.wait([self._keeping])

    async def wait_connected(self, within_s: float | None = None) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._connected.wait()
        except TimeoutError:
            raise BusError(
                f"no connection to the broker at {self._address.url}: {self._trouble}",
                "is it running? `millwright doctor` tells",
            ) from None

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        self.publish_many((Message(topic, payload, qos, retain),))

    def publish_many(self, messages: Iterable[Message]) -> None:
        rest = iter(messages)
        while batch := list(islice(rest, JOINED)):
            plain = [message for message in batch if not message.qos]
            if plain:
                self._send(plain)
            if len(plain) < len(batch):
                for message in batch:
                    if message.qos:
                        self._outgoing.add(message)
                self._send_outgoing()

    @property
    def unacknowledged(self) -> int:
        return len(self._outgoing)

    async def wait_lost(self) -> str:
        await self._gone.wait()
        return self._trouble

    async def ping(self) -> None:
        if self._wire is None or not self.connected:
            raise BusError(f"no connection to the broker at {self._address.url}: {self._trouble}")
        answer = self._answers.get(PONG)
        if answer is None:
            answer = self._await_answer(PONG)
            answer.add_done_callback(_hear)  # whoever asked may have left
            self._session.ping()
        try:
            await asyncio.shield(answer)
        except ConnectionError as error:
            raise BusError(f"the connection to the broker at {self._address.url} was lost: {error}") from None

    async def drain(self) -> None:
        while self._outgoing or (self._wire is not None and self._wire.backlog):
            self._idle.clear()
            await self._idle.wait()

    @asynccontextmanager
    async def subscribe(
        self, *filters: str, qos: int = 0, capacity: int = CAPACITY
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        subscription = self._inbox.add(filters, qos, capacity)
        self._session.splitter.forget_topics()
        is_settled = False
        try:
            if self.connected:
                await self._subscribe_now(subscription)
            yield subscription
            is_settled = True
        finally:
            loop = asyncio.get_running_loop()
            self._inbox.remove(subscription, loop.time(), settled=is_settled)
            self._session.splitter.forget_topics()
            loop.call_later(UNSUBSCRIBE_S if self._is_named else 0.0, self._unsubscribe, filters)

    def on_connected(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if self.connected:
            callback()

    # Connecting

    async def _stay_connected(self) -> None:
        delay = FIRST_RETRY_S
        while True:
            began = self._loop.time()
            try:
                async with asyncio.timeout(ANSWER_S):
                    lost = await self._connect()
                log.info("connected to the broker at %s", self._address.url)
                reason = await lost
                self._told = ""
                # A broker that is started again or stops a moment before us is no trouble; one that throws us out is.
                self._short = 0 if self._loop.time() - began > LAST_RETRY_S else self._short + 1
                self._spared = max(0, SPARED - self._short)
            except TimeoutError:
                reason = f"no answer within {ANSWER_S:g} s"
            except BusError as error:
                reason = str(error)
            except OSError as error:
                reason = explain(error)
            self._hang_up(reason)
            self._note(reason)
            if self._loop.time() - began > LAST_RETRY_S:
                delay = FIRST_RETRY_S
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(2 * delay, LAST_RETRY_S)

    async def _connect(self) -> "asyncio.Future[str]":
        """A future of the reason why the connection was lost again."""
        username, password = await self._credentials() if self._credentials else ("", None)
        sock = await dial(self._address, await self._security())
        self._lost = lost = self._loop.create_future()
        self._wire = Wire(sock, self._take, self._hang_up, self._written)
        connack = self._await_answer(CONNACK)
        self._session.identify(username, password)
        self._session.open(sock, self._wire)
        self._session.identify("", None)  # CONNECT is written: no password stays in a session's memory
        (refusal,) = await connack
        if refusal:
            raise BusError(f"it refuses us: {refusal}")
        await self._subscribe_all()
        self._connected.set()
        self._gone.clear()
        self._send_outgoing()
        for callback in self._callbacks:
            self._call(callback)
        return lost

    async def _security(self) -> ssl.SSLContext | None:
        if self._tls is None or self._papers is None:
            return self._tls
        return with_papers(tls_context(self._ca_file), await self._papers())

    async def _subscribe_all(self) -> None:
        while missing := [each for each in self._inbox.subscriptions if not self._standing.issuperset(each.filters)]:
            for subscription in missing:
                try:
                    await self._ask_for(subscription)
                except BusError as error:
                    self._standing.update(subscription.filters)
                    log.error("%s", error)

    async def _subscribe_now(self, subscription: Subscription) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._ask_for(subscription)
        except TimeoutError:
            self._hang_up("no answer to a subscription")
        except ConnectionError:
            return  # the next connection makes it stand

    async def _ask_for(self, subscription: Subscription) -> None:
        """BusError where the broker refuses, ConnectionError where the connection is lost meanwhile."""
        _, packet_id = self._session.subscribe([(each, subscription.qos) for each in subscription.filters])
        if packet_id is None:
            raise ConnectionError("not connected")
        refusals = await self._await_answer(packet_id)
        refused = [each for each, refusal in zip(subscription.filters, refusals, strict=False) if refusal]
        if refused:
            raise BusError(f"the broker refuses the subscription to {', '.join(refused)}", "see its access rules")
        self._standing.update(subscription.filters)

    def _unsubscribe(self, filters: Sequence[str]) -> None:
        wanted = {each for subscription in self._inbox.subscriptions for each in subscription.filters}
        unused = [each for each in filters if each in self._standing and each not in wanted]
        if unused and self._wire is not None:
            self._session.unsubscribe(unused)
            self._standing.difference_update(unused)

    def _hang_up(self, reason: str) -> None:
        """The connection is over, whoever ended it. Harmless when there is none."""
        if self._wire is None:
            return
        wire, self._wire = self._wire, None
        wire.close()
        self._session.hang_up()
        if self.connected:
            self._trouble = reason
        self._connected.clear()
        self._gone.set()
        self._standing.clear()
        self._inbox.void_ids()
        self._outgoing.rewind()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError(reason))
        self._answers.clear()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)
        self._idle.set()

    async def _say_goodbye(self) -> None:
        if not await within(LAST_WORDS_S, self.drain()):
            log.warning("%d messages were not acknowledged before the session was closed", len(self._outgoing))
        if self._wire is not None:
            self._session.disconnect()

    def _note(self, reason: str) -> None:
        self._trouble = reason
        if self._spared:
            self._spared -= 1
            level = logging.DEBUG
        else:
            level = logging.DEBUG if reason == self._told else logging.WARNING
            self._told = reason
        log.log(level, "no connection to the broker at %s: %s; trying again", self._address.url, reason)

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        if self._wire is not None:
            self._session.beat(is_deaf=self._wire.is_paused)
        self._inbox.expire(self._loop.time() - CLAIM_S)

    def _await_answer(self, packet_id: int) -> "asyncio.Future[Sequence[str]]":
        answer = self._answers[packet_id] = self._loop.create_future()
        return answer

    def _answer(self, packet_id: int, refusals: Sequence[str]) -> None:
        answer = self._answers.pop(packet_id, None)
        if answer is not None and not answer.done():
            answer.set_result(refusals)

    # Messages

    def _take(self) -> None:
        """Bytes have arrived."""
        self._session.loop_read()
        splitter = self._session.splitter
        if splitter.messages:
            self._inbox.deliver(splitter.messages, splitter.ids, self._session.taken, splitter.fresh, self._loop.time())
        if splitter.too_large:
            self._inbox.too_large([topic for topic, _ in splitter.too_large])
            self._settle([packet_id for _, packet_id in splitter.too_large if packet_id])
        if splitter.acknowledged:
            self._outgoing.acknowledge(splitter.acknowledged)
            self._send_outgoing()
        splitter.clear()
        if self._wire is not None and self._inbox.crowded:
            self._wire.pause()

    def _deliver_stray(self, message: Message) -> None:
        """We subscribe to QoS 0 and 1, but a broker may remember a session that did otherwise."""
        self._inbox.deliver([message], [], len(message.payload), [message.topic], self._loop.time())

    def _resume(self) -> None:
        if self._wire is not None and self._wire.is_paused and not self._inbox.crowded:
            self._wire.resume()

    def _settle(self, packet_ids: Sequence[int]) -> None:
        if packet_ids and self._wire is not None:
            self._wire.write(acknowledgements(packet_ids))

    def _send(self, messages: Sequence[Message]) -> None:
        if self._wire is None or not self.connected:
            self._drop("offline", messages)
        elif self._wire.backlog > MAX_OUTPUT:
            self._drop("stalled", messages)
        else:
            self._wire.write(self._joiner.join(messages))

    def _drop(self, reason: str, messages: Sequence[Message]) -> None:
        self.ledger.received += len(messages)
        self.ledger.drop(reason, messages[-1].topic, len(messages))

    def _send_outgoing(self) -> None:
        if self._wire is not None and self.connected and (packets := self._outgoing.ready()):
            self._wire.write(packets)
        if not self._outgoing:
            self._idle.set()

    def _written(self) -> None:
        self._idle.set()

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("a callback failed that follows each connection")


def _hear(answer: "asyncio.Future[Sequence[str]]") -> None:
    if not answer.cancelled():
        answer.exception()


def _tell_defect(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the bus stopped connecting: a defect", exc_info=error)
