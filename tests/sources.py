"""Connectors that need somebody to speak with: each with its peer, for the contract that all of them keep."""

import asyncio
import os
import queue
import socket
import threading
import tty
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from asyncua import Server, ua
from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import ModbusTcpServer

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.config.secrets import VaultName
from appliance.connectors import http, modbus, mqtt, opcua, serial
from appliance.connectors._pace import Leaping
from appliance.connectors.port import Arrival, Connector
from appliance.events.ledger import Ledger

Peer = Callable[[], AbstractAsyncContextManager[None]]


class WithPeer:
    """A connector, and whom it speaks with for as long as it is open."""

    def __init__(self, connector: Connector, peer: Peer) -> None:
        self._connector, self._peer = connector, peer
        self._stack = AsyncExitStack()

    @property
    def ledger(self) -> Ledger:
        return self._connector.ledger

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self._connector)
        await self._stack.enter_async_context(self._peer())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        return self._connector.__aiter__()


def listening(_: Path) -> Connector:
    """Devices of Zigbee2MQTT on a broker in memory."""
    broker, leap = MemoryBroker(), Leaping()
    plug = {"ieee_address": "0x1", "friendly_name": "plug"}

    async def speak() -> None:
        async with MemoryBus(broker) as bus:
            bus.publish("zigbee2mqtt/bridge/devices", msgspec.json.encode([plug]), retain=True)
            for number in range(10**6):
                await leap.wait(1)
                bus.publish("zigbee2mqtt/plug", b'{"power": %d}' % number if number % 5 else b"{broken")

    settings = mqtt.Settings("mqtt://192.0.2.1", dialects=["zigbee2mqtt"])
    return WithPeer(mqtt.create(settings, lambda _: MemoryBus(broker), leap.time()), lambda: busy(speak))


def polling(_: Path) -> Connector:
    """A slave of Modbus in this process."""
    leap, free = Leaping(), socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()

    @asynccontextmanager
    async def peer() -> AsyncIterator[None]:
        zeros = {name: ModbusSequentialDataBlock(1, [0] * 10) for name in ("ir", "hr", "di", "co")}
        server = ModbusTcpServer(ModbusServerContext(ModbusDeviceContext(**zeros)), address=("127.0.0.1", port))
        await server.serve_forever(background=True)
        listener = server.transport
        yield
        await server.shutdown()
        listener.close()

    one = {"asset": "line1/meter", "host": "127.0.0.1", "port": port, "points": [{"name": "p", "address": 1}]}
    return WithPeer(modbus.create(msgspec.convert({"slaves": [one]}, modbus.Settings), leap.time()), peer)


def plugged(_: Path) -> Connector:
    """A serial line that speaks."""
    leap = Leaping()
    far, near = os.openpty()
    tty.setraw(near)

    async def speak() -> None:
        for number in range(10**6):
            await leap.wait(1)
            os.write(far, b"%d\n" % number if number % 5 else b"ERR\n")

    connector = serial.create(serial.Settings(os.ttyname(near), "lab"), leap.time())
    return WithPeer(connector, lambda: busy(speak))


async def reveal(_: VaultName) -> bytes:
    return b"0123456789abcdef"


def posted(_: Path) -> Connector:
    """Somebody who sends by HTTP."""
    leap = Leaping()
    settings = http.Settings(0, VaultName("http/lab"), ["lab"], rate_hz=100_000)
    connector = http.create(settings, reveal, leap.time())

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", connector.port)
        try:
            for number in range(10**6):
                await leap.wait(1)
                body = b'{"t": %d}' % number if number % 5 else b'{"t": "x"}'
                head = "POST /readings/lab/oven HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer 0123456789abcdef\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await reader.readuntil(b"}")
        finally:
            writer.close()

    return WithPeer(connector, lambda: busy(send))


@lru_cache
def server() -> str:
    """An OPC UA server with a machine, in a thread of its own for as long as the tests run: it takes seconds to start.
    Its address."""
    ready: queue.Queue[str] = queue.Queue()

    async def serve() -> None:
        served = Server()
        await served.init()
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"opc.tcp://127.0.0.1:{free.getsockname()[1]}"
        served.set_endpoint(url)
        served.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await served.register_namespace("urn:test:machine")
        machine = await served.nodes.objects.add_object(ua.NodeId("M", space), ua.QualifiedName("M", space))
        await machine.add_variable(space, "T", 20.5)
        async with served:
            ready.put(url)
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    return ready.get(timeout=60)


def subscribed(_: Path) -> Connector:
    told = {"url": server(), "asset": "lab", "browse": "ns=2;s=M", "interval_s": 0.01}
    return opcua.create(msgspec.convert(told, opcua.Settings), reveal)


@asynccontextmanager
async def busy(work: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Work that goes on for as long as the context lasts."""
    task = asyncio.create_task(work())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


MAKERS: dict[str, Callable[[Path], Connector]] = {
    "http": posted,
    "modbus": polling,
    "mqtt": listening,
    "opcua": subscribed,
    "serial": plugged,
}
