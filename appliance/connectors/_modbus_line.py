"""One line of Modbus: a TCP connection or a serial port, through pymodbus, one request at a time."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerType

from appliance.connectors._registers import Block
from appliance.errors import ConnectorError

logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # what it says of each timeout is in our errors

_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "slave device failure",
    5: "acknowledge",
    6: "slave device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not answer",
}
OF_REGISTERS = (1, 2, 3)  # exceptions that tell of what was asked for, not of the slave

Trace = Callable[[bool, bytes], bytes]


class RefusalError(ConnectorError):
    """The slave answers with an exception: it is alive. `code` as in the specification."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: exception {code} ({_EXCEPTIONS.get(code, 'unknown')})", "Look at its register map.")
        self.code = code


class Line:
    """`place` names it for people. `read` and `write` raise RefusalError, or ConnectorError where nobody answers."""

    def __init__(self, client: Any, place: str, timeout_s: float) -> None:
        self._client, self.place, self._timeout_s = client, place, timeout_s
        self._lock = asyncio.Lock()

    def close(self) -> None:
        self._client.close()

    async def read(self, unit: int, block: Block, timeout_s: float = 0.0) -> Sequence[int]:
        """Registers, or bits as 0 and 1. `timeout_s` 0: the line's own."""
        call = {
            "holding": self._client.read_holding_registers,
            "input": self._client.read_input_registers,
            "coil": self._client.read_coils,
            "discrete": self._client.read_discrete_inputs,
        }[block.table]
        what = f"unit {unit}, {block.table} {block.address} to {block.address + block.size - 1}"

        async def ask() -> Any:
            return await call(block.address, count=block.size, device_id=unit)

        answer = await self._asked(ask, what, timeout_s or self._timeout_s)
        found = answer.bits if block.table in ("coil", "discrete") else answer.registers
        if len(found) < block.size:
            raise ConnectorError(
                f"{self.place}: {what}: {len(found)} values came", "Its answer is cut: look at the line."
            )
        return [int(one) for one in found[: block.size]]

    async def write(self, unit: int, table: str, address: int, values: list[int]) -> None:
        what = f"unit {unit}, write {table} {address}"

        async def ask() -> Any:
            if table == "coil":
                return await self._client.write_coil(address, bool(values[0]), device_id=unit)
            if len(values) == 1:
                return await self._client.write_register(address, values[0], device_id=unit)
            return await self._client.write_registers(address, values, device_id=unit)

        await self._asked(ask, what, self._timeout_s)

    async def _asked(self, ask: Callable[[], Any], what: str, timeout_s: float) -> Any:
        """Once more where an answer came that belongs to another question: one that was late."""
        async with self._lock:
            await self._connected()
            for is_last in (False, True):
                self._client.comm_params.timeout_connect = timeout_s
                try:
                    answer = await ask()
                    break
                except ModbusException as error:
                    if "but received" in str(error) and not is_last:
                        continue
                    raise ConnectorError(
                        f"{self.place}: {what}: no answer within {timeout_s:g} s",
                        "Is it switched on, and are its address and the line's settings right?",
                    ) from error
        if answer.isError():
            raise RefusalError(getattr(answer, "exception_code", 0), f"{self.place}: {what}")
        return answer

    async def _connected(self) -> None:
        if self._client.connected:
            return
        self._client.comm_params.timeout_connect = self._timeout_s
        try:
            if await self._client.connect():
                return
        except (OSError, ModbusException):
            pass  # told below: pymodbus says no more than that
        raise ConnectorError(f"{self.place} cannot be opened", "Is it there, and may this user use it?")


def tcp(host: str, port: int, timeout_s: float, framer: str, trace: Trace | None = None) -> Line:
    client = AsyncModbusTcpClient(
        host,
        port=port,
        framer=FramerType.RTU if framer == "rtu" else FramerType.SOCKET,
        timeout=timeout_s,
        retries=0,
        reconnect_delay=0,
        trace_packet=trace,
    )
    return Line(client, f"{host}:{port}", timeout_s)


def serial(
    port: str, baud: int, parity: str, stop_bits: int, timeout_s: float, framer: str, trace: Trace | None = None
) -> Line:
    client = AsyncModbusSerialClient(
        port,
        framer=FramerType.ASCII if framer == "ascii" else FramerType.RTU,
        baudrate=baud,
        parity=parity,
        stopbits=stop_bits,
        timeout=timeout_s,
        retries=0,
        reconnect_delay=0,
        trace_packet=trace,
    )
    return Line(client, port, timeout_s)
