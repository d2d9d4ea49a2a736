"""Finds the Millwright that runs on this machine, and opens a session with it.

`millwright run` announces itself in a small file in the default folder for sockets, so that `millwright watch` needs no
options to find it, wherever its state and its sockets are.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from appliance.cli import nearby
from appliance.config.document import Document
from appliance.config.load import load
from appliance.config.places import INSTALLED, Paths, default_run
from appliance.config.schema import Config
from appliance.errors import BusError, ConfigError
from appliance.runtime.patience import within

if TYPE_CHECKING:
    from appliance.bus.port import Bus
    from appliance.services.picture import Picture

_T = TypeVar("_T")

FILE = "instance.json"
MAX_BYTES = 64 << 10
PATIENCE_S = 2.0  # a broker on this machine answers within milliseconds
START = "Start it with tools/run or 'millwright run', or name its configuration with --config."


class Instance(msgspec.Struct, frozen=True):
    """What a running Millwright says of itself."""

    pid: int
    config: str | None  # path of its configuration, none for the built-in defaults
    state: str
    run: str
    demo: bool = False
    hear: list[str] = msgspec.field(default_factory=list)  # brokers elsewhere, beside those of its configuration


def configuration(args: argparse.Namespace) -> tuple[Config, Document]:
    """That of --config, else that of the instance that runs, else the installed one or the defaults."""
    if args.config is not None:
        return load(args.config)
    running = find()
    if running is None:
        return load()
    config, document = load(Path(running.config) if running.config else None)
    config = nearby.hearing(config, running.hear)
    return msgspec.structs.replace(config, paths=Paths(Path(running.state), Path(running.run))), document


def find() -> Instance | None:
    """The instance that announced itself and is alive."""
    try:
        # Looked at and read by one descriptor: in a shared folder somebody could exchange the file in between.
        with os.fdopen(os.open(default_run() / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or not _trusted(facts.st_uid):
                return None
            instance = msgspec.json.decode(file.read(MAX_BYTES), type=Instance)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return instance if _alive(instance.pid) else None


def announce(config: Config, config_path: Path | None, demo: bool, hear: Sequence[str] = ()) -> None:
    """Say that this process is the instance that runs. ConfigError where the folder for sockets cannot be written."""
    instance = Instance(
        pid=os.getpid(),
        config=str(config_path.absolute()) if config_path else None,
        state=str(config.paths.state.absolute()),
        run=str(config.paths.run.absolute()),
        demo=demo,
        hear=list(hear),
    )
    folder = default_run()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".{FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(msgspec.to_builtins(instance), indent=2) + "\n", "utf-8")
        temporary.replace(folder / FILE)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}", "Set XDG_RUNTIME_DIR to a folder of your own."
        ) from error


def retract() -> None:
    """Take the announcement back, unless another instance has made its own since."""
    running = find()
    if running is not None and running.pid == os.getpid():
        (default_run() / FILE).unlink(missing_ok=True)


def bus_url(config: Config) -> str:
    """Where the bus is: as configured, else the socket of the broker that Millwright starts."""
    from appliance import assembly

    return assembly.bus_url(config)


@asynccontextmanager
async def session(config: Config) -> "AsyncIterator[Bus]":
    """A session of its own with the bus, connected. BusError after two seconds of no answer."""
    from appliance import assembly

    # A command says in its own words what a person must know; a log line would tear the screen.
    logging.getLogger("appliance").addHandler(logging.NullHandler())
    url = bus_url(config)
    if url.startswith("unix:") and not Path(url.removeprefix("unix:")).exists():
        raise BusError(f"no Millwright answers at {url}: there is no such socket", START)
    async with assembly.session(config) as bus:
        try:
            await bus.wait_connected(PATIENCE_S)
        except BusError as error:
            raise BusError(f"no Millwright answers: {error.message}", START) from error
        yield bus


async def look(bus: "Bus") -> "Picture":
    """The picture of all that the broker keeps: standing alarms and the services' states."""
    from appliance.bus.port import Message
    from appliance.events import codec, topics
    from appliance.events.schema import Command, CommandState
    from appliance.services.picture import RETAINED_FILTERS, Picture

    picture = Picture(time.time_ns())
    # The broker answers in order: when our own message comes back, everything it keeps has come before.
    fence = topics.command("cli", "look", secrets.token_hex(6))

    async def feed() -> None:
        async with bus.subscribe(*RETAINED_FILTERS, fence, qos=1) as batches:
            bus.publish(fence, codec.encode(Command(time.time_ns(), CommandState.INIT)), qos=1)
            async for batch in batches:
                kept: list[Message] = [message for message in batch if message.topic != fence]
                picture.feed(kept, time.time_ns())
                if len(kept) < len(batch):
                    return

    if not await within(PATIENCE_S * 2, feed()):
        raise BusError("the broker does not hand out what it keeps", "See 'millwright doctor'.")
    return picture


def play(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's asynchronous part to its end."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _trusted(owner: int) -> bool:
    """In a shared temporary folder anybody may lay a file; on an appliance only root and the service write there."""
    return owner in (0, os.geteuid()) or INSTALLED.exists()
