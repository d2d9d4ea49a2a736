"""The mosquitto that Millwright starts where the system offers no broker: its configuration, its life, its end."""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

from appliance.config.schema import Broker, Paths
from appliance.errors import BusError
from appliance.runtime.service import Pulse

log = logging.getLogger(__name__)

SOCKET, CONFIGURATION, LOCK, STORE = "mqtt.sock", "mosquitto.conf", "lock", "broker"
MAX_SOCKET_PATH = 107  # bytes, unix(7)
START_S = 10.0  # until the socket accepts; a large store takes time to read
POLL_S = 0.02
STOP_S = 0.8  # between SIGTERM and SIGKILL
BEAT_S = 2.0
FIRST_RESTART_S, LAST_RESTART_S = 0.1, 5.0
STEADY_S = 30.0  # a broker that lived so long is restarted at once

# A reader in our bus acknowledges a batch at a time: with fewer in flight the broker would wait for it.
INFLIGHT_MESSAGES = 4096
INFLIGHT_BYTES = 64 << 20
QUEUED_BYTES = 256 << 20  # for each service that is away
HEAD_BYTES = 65_536 + 16  # a packet's topic and length, beside its payload
_SBIN = ("/usr/local/sbin", "/usr/sbin")  # not in an ordinary user's PATH on Debian


def socket_path(paths: Paths) -> Path:
    return paths.run / SOCKET


def url(paths: Paths) -> str:
    """Where the bus finds this broker."""
    return f"unix:{socket_path(paths)}"


def configuration(paths: Paths, settings: Broker, *, as_root: bool) -> str:
    """mosquitto.conf, for 2.0.11 (Debian 12) to 2.0.21 (Debian 13). BusError for folders it could not spell."""
    for path in (socket_path(paths), paths.state):
        if not str(path).isprintable():
            raise BusError(f"the folder {str(path)!r} cannot be written into mosquitto's configuration", "rename it")
    payload = settings.max_payload_kb << 10
    lines = [
        "# Written by millwright at each start: see [broker] in millwright.toml.",
        # mosquitto started by root turns into a user of its own, who could not write to our folders.
        *(["user root"] if as_root else []),
        "# Anonymous clients: on the listeners below only, which nobody outside this machine can reach.",
        "allow_anonymous true",
        f"listener 0 {socket_path(paths)}",
        *([f"listener {settings.listen_port} 127.0.0.1"] if settings.listen_port else []),
        *(["set_tcp_nodelay true"] if settings.listen_port else []),  # a unix socket has no such thing
        "persistence true",
        f"persistence_location {paths.state / STORE}/",
        "autosave_on_changes false",
        f"autosave_interval {settings.save_interval_s}",
        "persistent_client_expiration 7d",
        "# Explicit, because mosquitto drops silently beyond its defaults.",
        f"max_queued_messages {settings.max_queued_messages}",
        f"max_queued_bytes {QUEUED_BYTES}",
        f"max_inflight_messages {INFLIGHT_MESSAGES}",
        f"max_inflight_bytes {INFLIGHT_BYTES}",
        f"message_size_limit {payload}",
        f"max_packet_size {payload + HEAD_BYTES}",
        "sys_interval 10",
        "log_dest stderr",
        "log_timestamp false",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
    ]
    return "\n".join(lines) + "\n"


class MosquittoBroker:
    """A service: mosquitto as a child, restarted when it dies, gone when we are."""

    name = "broker"

    def __init__(self, paths: Paths, settings: Broker) -> None:
        self._paths, self._settings = paths, settings
        self._socket = socket_path(paths)
        self.starts = 0

    async def run(self, pulse: Pulse) -> None:
        """BusError where mosquitto is missing, refuses to start, or where another instance uses the same folders."""
        program = find_program(self._settings.executable)
        with self._folders():
            await self._keep_running(program, pulse)

    async def _keep_running(self, program: str, pulse: Pulse) -> None:
        loop, delay = asyncio.get_running_loop(), FIRST_RESTART_S
        while True:
            began = loop.time()
            async with self._child(program) as child:
                await self._until_ready(child)
                if self.starts == 1:
                    pulse.ready()
                await _beat_while_alive(child, pulse)
            log.error("mosquitto ended with code %s; starting it again", child.returncode)
            delay = FIRST_RESTART_S if loop.time() - began > STEADY_S else delay
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RESTART_S)

    @contextlib.contextmanager
    def _folders(self) -> Iterator[None]:
        """Ours alone, made where they are missing; with the configuration written and no stale socket."""
        path = str(self._socket)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise BusError(f"the socket's path '{path}' is longer than {MAX_SOCKET_PATH} bytes", "shorten paths.run")
        store = self._paths.state / STORE
        try:
            for folder in (self._paths.run, store):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (store / LOCK).open("w") as lock, _locked(lock, store):
                self._socket.unlink(missing_ok=True)
                text = configuration(self._paths, self._settings, as_root=os.geteuid() == 0)
                (self._paths.run / CONFIGURATION).write_text(text, "utf-8")
                yield
        except OSError as error:
            remedy = "give the right to write there, or name other folders in [paths]"
            raise BusError(f"the broker's folders cannot be used: {error}", remedy) from error

    @contextlib.asynccontextmanager
    async def _child(self, program: str) -> AsyncIterator[Process]:
        """mosquitto, which gets SIGTERM when this process dies: it saves its queues and goes."""
        self.starts += 1
        command = [program, "-c", str(self._paths.run / CONFIGURATION)]
        setpriv = shutil.which("setpriv")
        guarded = [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else command
        child = await asyncio.create_subprocess_exec(*guarded, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
        relaying = asyncio.create_task(_relay(child), name="broker log")
        try:
            yield child
        finally:
            await _end(child)
            await relaying

    async def _until_ready(self, child: Process) -> None:
        """The socket accepts. BusError where mosquitto ends instead, or takes too long."""
        try:
            async with asyncio.timeout(START_S):
                while not _accepts(self._socket):
                    if child.returncode is not None:
                        raise BusError(
                            f"mosquitto ended with code {child.returncode} before it listened",
                            "its own words stand above; see [broker] in the configuration",
                        )
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise BusError(f"mosquitto does not listen on {self._socket} after {START_S:g} s", "see its log") from None


def find_program(name: str) -> str:
    """BusError where there is no such program."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_SBIN))
    if found is None:
        raise BusError(f"there is no program '{name}'", "install it: apt install mosquitto; or name it in [broker]")
    return found


@contextlib.contextmanager
def _locked(lock: IO[str], folder: Path) -> Iterator[None]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusError(f"another Millwright's broker uses {folder}", "stop it, or name another paths.state") from None
    yield


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


async def _relay(child: Process) -> None:
    """What mosquitto says, in our log."""
    assert child.stderr is not None
    while line := await child.stderr.readline():
        text = line.decode("utf-8", "replace").strip()
        log.log(logging.WARNING if "rror" in text or "arning" in text else logging.DEBUG, "mosquitto: %s", text)


async def _beat_while_alive(child: Process, pulse: Pulse) -> None:
    ended = asyncio.ensure_future(child.wait())
    while not ended.done():
        pulse.beat()
        await asyncio.wait([ended], timeout=BEAT_S)


async def _end(child: Process) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(child.wait(), STOP_S)
    except TimeoutError:
        log.error("mosquitto did not stop within %s s", STOP_S)
        child.kill()
        await child.wait()
