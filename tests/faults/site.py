"""A site for tests: the services as processes of their own, restarted like by systemd, and a session that watches them.

    async with Site(folder, SETTINGS) as site:
        await site.until(lambda: ..., "what is waited for")
        await site.kill(["detect"])

Nothing here sleeps: whoever waits, waits for what the bus or the kernel says.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Batch
from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.schema import ANOMALY, Alarm, Kind, State

BROKER, MOSQUITTO = "broker", "mosquitto"
SERVICES = ("record", "detect", "ingest")
PATIENCE_S = 30.0
STOP_S = 2.0


class Process:
    """One service in a process of its own. It may end by SIGKILL, and when it is told to stop; nothing else."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self.starts = 0
        self.pid = 0
        self.exit_code: int | None = None
        self._command, self._environment = command, environment
        self._died = asyncio.Event()
        self._stopping = False

    async def keep(self) -> None:
        """Start it, and again each time it was killed."""
        while not self._stopping:
            self._died.clear()
            with self.log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(*self._command, stderr=log, env=self._environment)
            self.pid, self.starts = process.pid, self.starts + 1
            try:
                self.exit_code = await process.wait()
            except asyncio.CancelledError:
                process.kill()
                await process.wait()
                raise
            self._died.set()
            assert self._stopping or self.exit_code == -signal.SIGKILL, (
                f"{self.name} ended by itself with {self.exit_code}:\n{self.tail()}"
            )

    async def kill(self) -> None:
        """Until it is dead; `keep` starts the next one."""
        os.kill(self.pid, signal.SIGKILL)
        await self._died.wait()

    async def stop(self) -> tuple[int, float]:
        """Exit code, and the seconds that it took."""
        self._stopping = True
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await self._died.wait()
        assert self.exit_code is not None
        return self.exit_code, time.monotonic() - began

    def tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-4000:]


class Site:
    """`settings` is TOML without [paths]. Its own session publishes what tests publish, and hears states and alarms."""

    def __init__(self, folder: Path, settings: str, services: Iterable[str] = SERVICES) -> None:
        self.folder, self.state = folder, folder / "state"
        self.config = folder / "site.toml"
        self.config.write_text(f'[paths]\nstate = "{self.state}"\nrun = "{folder}/run"\n{settings}', "utf-8")
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_STATE_HOME": str(folder),
            "PYTHONWARNINGS": "error",
        }
        names = (BROKER, *services)
        self.processes = {
            name: Process(name, self.command("run", name), self.environment, folder / f"{name}.log") for name in names
        }
        self.bus = MqttBus(f"unix:{folder}/run/mqtt.sock")
        self.states: dict[str, State] = {}
        self.alarms: dict[str, Alarm] = {}  # standing anomalies, by asset
        self._heard = asyncio.Event()

    @property
    def services(self) -> list[str]:
        """Those that have a state on the bus."""
        return [name for name in self.processes if name != BROKER]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "appliance", "--config", str(self.config), *words]

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(process.keep()) for process in self.processes.values()]
        self._tasks.append(asyncio.create_task(self._listen()))
        for task in self._tasks:
            task.add_done_callback(lambda _: self._heard.set())
        try:
            await self.until(lambda: all(self.online(name) for name in self.services), "all services online")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def run(self, *words: str) -> tuple[int, str, str]:
        """The command line as a user's: exit code, output, errors."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self.command(*words), stdout=pipe, stderr=pipe, env=self.environment
        )
        async with asyncio.timeout(PATIENCE_S):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    def online(self, name: str, since: int = 0) -> bool:
        """It said so itself after a time (UTC ns): its subscriptions stand."""
        state = self.states.get(name)
        return state is not None and state.online and state.at > since

    async def until(self, condition: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
        """Looked at after each message that was heard, and whenever a process ends by itself."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    self._raise_ends()
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            raise AssertionError(f"not within {within_s:g} s: {what}; {self._picture()}") from None

    async def kill(self, victims: Iterable[str]) -> int:
        """SIGKILL, at once; until all are back. The time (UTC ns) at which the last one was."""
        victims = set(victims)
        struck = time.time_ns()
        mosquitto = self.mosquitto() if MOSQUITTO in victims else None
        if mosquitto is not None:
            mosquitto.kill()
        for name in victims - {MOSQUITTO}:
            await self.processes[name].kill()
            struck = time.time_ns()
        # A broker that is gone takes all with it: each service says so anew after its next connection.
        back = self.services if victims & {BROKER, MOSQUITTO} else sorted(victims)
        await self.until(lambda: all(self.online(name, struck) for name in back), f"{', '.join(back)} back")
        return time.time_ns()

    def mosquitto(self) -> psutil.Process:
        """The broker's child."""
        children = psutil.Process(self.processes[BROKER].pid).children()
        return next(child for child in children if child.name() == MOSQUITTO)

    async def stop(self) -> dict[str, tuple[int, float]]:
        """The services, then the broker: exit code and seconds of each."""
        names = self.services
        ends = dict(zip(names, await asyncio.gather(*(self.processes[name].stop() for name in names)), strict=True))
        await self.until(lambda: not any(self.states[name].online for name in names), "the last words of all")
        ends[BROKER] = await self.processes[BROKER].stop()
        return ends

    def memory_mb(self, name: str) -> float:
        """MiB that the process itself has written. How much of its libraries' files is mapped beside that is up to the
        page cache: 30 MiB more for the same process right after an installation."""
        facts = psutil.Process(self.processes[name].pid).memory_info()
        return float(facts.rss - facts.shared) / (1 << 20)

    async def _listen(self) -> None:
        async with (
            self.bus,
            self.bus.subscribe(topics.everything(Kind.STATE), topics.everything(Kind.ALARM), qos=1) as batches,
        ):
            await self._follow(batches)

    async def _follow(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                try:
                    kind, path = topics.parse(message.topic)
                    event = codec.decode(kind, message.payload, time.time_ns()) if message.payload else None
                except EventError:
                    continue  # a test's own garbage
                if kind is Kind.ALARM and topics.condition(message.topic) != ANOMALY:
                    continue
                if isinstance(event, State):
                    self.states[path] = event
                elif isinstance(event, Alarm) and event.state != "normal":
                    self.alarms[path] = event
                elif kind is Kind.ALARM:
                    self.alarms.pop(path, None)
            self._heard.set()

    def _raise_ends(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, AssertionError):
                raise result

    def _picture(self) -> str:
        states = {
            name: (state.online, state.received, state.processed, state.dropped, state.detail.get("trouble", ""))
            for name, state in self.states.items()
        }
        logs = "\n".join(f"--- {name}\n{process.tail()}" for name, process in self.processes.items())
        return f"states {states}, alarms {sorted(self.alarms)}\n{logs}"
