"""The mosquitto that Millwright starts where the system offers no broker: its configuration, its life, its end."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import stat
from asyncio.subprocess import DEVNULL, PIPE
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.bus import door as doors
from appliance.bus.door import Door, Doorkeeper
from appliance.config.places import Paths
from appliance.config.schema import Broker
from appliance.errors import BusError, MillwrightError
from appliance.runtime.patience import within
from appliance.runtime.service import Pulse

log = logging.getLogger(__name__)

SOCKET, CONFIGURATION, STORE = "mqtt.sock", "mosquitto.conf", "broker"
MAX_SOCKET_PATH = 107  # bytes, unix(7)
PRIVATE = 0o700
GROUP = 0o660  # of the socket, in a folder that root gave to a group
START_S = 30.0  # until the socket accepts; a large store takes time to read
POLL_S = 0.02
STOP_S = 0.8  # between SIGTERM and SIGKILL
ORPHAN_S, ORPHAN_POLL_S = 5.0, 0.1  # for the child of a process that was killed to save what it keeps
BEAT_S = 2.0
FIRST_RESTART_S, LAST_RESTART_S = 0.1, 5.0
STEADY_S = 30.0  # a broker that lived so long is restarted at once

# A reader in our bus acknowledges a batch at a time: with fewer in flight the broker would wait for it.
INFLIGHT_MESSAGES = 4096
INFLIGHT_BYTES = 64 << 20
QUEUED_BYTES = 256 << 20  # for each service that is away
HEAD_BYTES = 65_536 + 16  # a packet's topic and length, beside its payload
LAST_LINES = 5  # of its log, for the error that says why it ended
_LEVELS = {"Error": logging.ERROR, "Warning": logging.WARNING}
_EXPECTED = (
    "Warning: Mosquitto should not be run as root",  # see `user root` in the configuration
    "Warning: Unable to set TCP_NODELAY",  # for each client of the unix socket, once there is a TCP port as well
)
_SBIN = ("/usr/local/sbin", "/usr/sbin")  # not in an ordinary user's PATH on Debian


def socket_path(paths: Paths) -> Path:
    return paths.run / SOCKET


def url(paths: Paths) -> str:
    """Where the bus finds this broker."""
    return f"unix:{socket_path(paths)}"


def configuration(paths: Paths, settings: Broker, *, as_root: bool, door: Door | None = None) -> str:
    """mosquitto.conf, for 2.0.11 (Debian 12) to 2.0.21 (Debian 13). BusError for folders it could not spell."""
    for setting, path in (("paths.run", paths.run), ("paths.state", paths.state)):
        if not str(path).isprintable():
            raise BusError(f"{setting} {str(path)!r} cannot be written into mosquitto's configuration", "rename it")
    if " " in str(paths.run):
        raise BusError(f"mosquitto cannot listen in a folder with a blank in its name: {paths.run}", "set paths.run")
    payload = settings.max_payload_kb << 10
    lines = [
        "# Written by millwright at each start: see [broker] in millwright.toml.",
        # mosquitto started by root turns into a user of its own, who could not write to our folders.
        *(["user root"] if as_root else []),
        "# Anonymous clients: on the first listeners only, which nobody outside this machine can reach.",
        "allow_anonymous true",
        f"listener 0 {socket_path(paths)}",
        *([f"listener {settings.listen_port} 127.0.0.1"] if settings.listen_port else []),
        *(["set_tcp_nodelay true"] if settings.listen_port else []),  # a unix socket has no such thing
        *(doors.configuration(door, paths.run / doors.FOLDER) if door else []),
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

    def __init__(self, paths: Paths, settings: Broker, doorkeeper: Doorkeeper | None = None) -> None:
        self._paths, self._settings, self._doorkeeper = paths, settings, doorkeeper
        self._door: Door | None = None
        self._socket = socket_path(paths)
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.child: asyncio.subprocess.Process | None = None

    async def run(self, pulse: Pulse) -> None:
        """BusError where mosquitto is missing or refuses to start.

        Nobody else may use the same folders: whoever runs services holds a lock for each of them there.
        """
        command = _command(find_program(self._settings.executable), self._paths.run / CONFIGURATION)
        self._door = await self._doorkeeper() if self._doorkeeper else None
        self._prepare_folders()
        await self._live(command, pulse, first=True)
        delay = FIRST_RESTART_S
        while True:
            await asyncio.sleep(delay)
            lived_s = await self._live(command, pulse, first=False)
            delay = FIRST_RESTART_S if lived_s > STEADY_S else min(2 * delay, LAST_RESTART_S)

    async def _live(self, command: Sequence[str], pulse: Pulse, *, first: bool) -> float:
        """One life of the child, in seconds. BusError where the first one does not come up."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self._running(command) as child:
            if await self._is_up(child):
                _let_group_in(self._socket)
                log.info("mosquitto listens at %s", self._socket)
                if first:
                    pulse.ready()
                await self._beat_while_alive(child, pulse)
            elif first:
                raise self._no_start(child)
        log.error("mosquitto ended with code %s: %s; starting it again", child.returncode, self._said())
        return loop.time() - began

    @asynccontextmanager
    async def _running(self, command: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
        await _freed(self._socket)
        self._last_lines.clear()
        # Its own session: Ctrl-C in a terminal reaches us alone, and we end it after the services have ended.
        self.child = child = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, start_new_session=True
        )
        assert child.stderr is not None
        relay = asyncio.create_task(self._relay(child.stderr), name="broker log")
        try:
            yield child
        finally:
            await _end(child)
            await relay

    async def _beat_while_alive(self, child: asyncio.subprocess.Process, pulse: Pulse) -> None:
        ended = asyncio.ensure_future(child.wait())
        try:
            while not (await asyncio.wait([ended], timeout=BEAT_S))[0]:
                pulse.beat()
                await self._renew_door(child)
        finally:
            ended.cancel()

    async def _renew_door(self, child: asyncio.subprocess.Process) -> None:
        """A device was admitted or revoked, or a certificate was renewed: mosquitto reads it without losing anybody."""
        if self._doorkeeper is None:
            return
        try:
            door = await self._doorkeeper()
            if door != self._door:
                doors.write(door, self._paths.run / doors.FOLDER)
                child.send_signal(signal.SIGHUP)
                self._door = door
        except MillwrightError as error:  # the door stays as it was; those who are inside notice nothing
            log.warning("the broker's door to devices could not be renewed: %s", error.message)

    async def _is_up(self, child: asyncio.subprocess.Process) -> bool:
        """Wait until the socket accepts, or the child is gone."""
        for _ in range(round(START_S / POLL_S)):
            if child.returncode is not None:
                return False
            if _accepts(self._socket):
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _relay(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            text = line.decode("utf-8", "replace").strip()
            self._last_lines.append(text)
            level = logging.DEBUG if text.startswith(_EXPECTED) else _LEVELS.get(text.partition(":")[0], logging.DEBUG)
            log.log(level, "mosquitto: %s", text)

    def _said(self) -> str:
        return " | ".join(line for line in self._last_lines if line) or "it said nothing"

    def _no_start(self, child: asyncio.subprocess.Process) -> BusError:
        state = "does not listen" if child.returncode is None else f"ended with code {child.returncode}"
        return BusError(
            f"mosquitto {state} after its start: {self._said()}",
            "see broker.listen_port, paths.state and paths.run; "
            f"`mosquitto -c {self._paths.run / CONFIGURATION}` says more",
        )

    def _prepare_folders(self) -> None:
        """Ours alone, with the configuration in place."""
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            raise BusError(
                f"the path of the socket {self._socket} is longer than {MAX_SOCKET_PATH} bytes", "shorten paths.run"
            )
        for folder in (self._paths.run, self._paths.state / STORE):
            _own_folder(folder)
        if self._door:
            doors.write(self._door, self._paths.run / doors.FOLDER)
        text = configuration(self._paths, self._settings, as_root=os.geteuid() == 0, door=self._door)
        (self._paths.run / CONFIGURATION).write_text(text, "utf-8")


def find_program(name: str) -> str:
    """BusError where mosquitto is not installed."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))
    if path is None:
        raise BusError(f"the broker '{name}' is not installed", "apt install mosquitto, or set broker.executable")
    return path


def _command(program: str, configuration_file: Path) -> list[str]:
    wrapper = shutil.which("setpriv")
    if wrapper is None:
        log.warning("setpriv (util-linux) is missing: mosquitto will stay behind if this process is killed")
    return [*([wrapper, "--pdeathsig", "TERM"] if wrapper else []), program, "-c", str(configuration_file)]


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.terminate()
    if not await within(STOP_S, child.wait()):
        log.warning("mosquitto was killed: it did not stop within %s s", STOP_S)
        child.kill()
        await child.wait()


def _own_folder(folder: Path) -> None:
    """Made if absent; closed to others. BusError where it is neither ours nor given to us."""
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        found = folder.stat()
        if _is_given(found):
            return
        if found.st_uid != os.geteuid():
            raise BusError(f"the folder {folder} belongs to another user", "set paths.run and paths.state elsewhere")
        if stat.S_IMODE(found.st_mode) != PRIVATE:
            folder.chmod(PRIVATE)
    except OSError as error:
        raise BusError(f"the folder {folder} cannot be used: {error.strerror}", "set paths.run, paths.state") from error


def _is_given(folder: os.stat_result) -> bool:
    """Root made it for a group of services with users of their own, as on the image: nobody else may enter, and the
    sticky bit keeps them from each other's files."""
    closed = not folder.st_mode & stat.S_IRWXO and bool(folder.st_mode & stat.S_ISVTX)
    return folder.st_uid == 0 and closed and os.geteuid() != 0


def _let_group_in(path: Path) -> None:
    """Who may enter a given folder may connect: our umask alone would keep all other users out."""
    if _is_given(path.parent.stat()):
        path.chmod(GROUP)


async def _freed(path: Path) -> None:
    """Remove what a killed broker left behind. BusError where the name is taken by something alive, or no socket."""
    for _ in range(round(ORPHAN_S / ORPHAN_POLL_S)):
        try:
            is_socket = stat.S_ISSOCK(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if not is_socket:
            raise BusError(f"{path} is in the way: it is no socket", "remove it, or set paths.run elsewhere")
        if _refuses(path):
            path.unlink(missing_ok=True)
            return
        await asyncio.sleep(ORPHAN_POLL_S)
    raise BusError(f"another broker listens at {path}", "stop it, or give this one its own paths.run")


def _refuses(path: Path) -> bool:
    """Nobody has the socket any more. One who is too busy to accept is alive."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(POLL_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(POLL_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
