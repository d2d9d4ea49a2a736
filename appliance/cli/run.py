"""`millwright run`: the services, all in one process or only those that are named.

millwright run                      everything, broker included
millwright run detect               one service in a process of its own, as on the appliance
millwright run --demo               a simulated pump that fails after 75 s, state of its own
millwright run --hear mqtt://127.0.0.1:1883    and devices on that broker, of Zigbee2MQTT for instance
millwright run --seconds 60 --report report.json
"""

import argparse
import asyncio
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from appliance import assembly
from appliance.cli import instance, nearby
from appliance.config import secrets
from appliance.config.load import load
from appliance.config.places import Paths
from appliance.config.schema import Config
from appliance.errors import ConfigError
from appliance.runtime import files, group, seclusion

if TYPE_CHECKING:
    from appliance.runtime.service import Service
    from appliance.services.picture import Change, Picture

LOCK = ".lock"
REPEATED_S = 5.0
DEMO = {
    "simulator": {"asset": "demo/pump", "fault": "bearing-wear", "fault_after_s": 75.0},
    "host": {},
}


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("run", help="start the services", description="Starts the services.")
    parser.add_argument(
        "services", nargs="*", metavar="SERVICE", help=f"of {', '.join(assembly.SERVICES)}; all if none"
    )
    parser.add_argument("--demo", action="store_true", help="a simulated pump that fails after 75 seconds")
    parser.add_argument(
        "--hear", action="append", default=[], metavar="URL", help="devices on this broker, too: mqtt://127.0.0.1:1883"
    )
    parser.add_argument("--seconds", type=_seconds, metavar="N", help="stop by itself after N seconds")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was seen as JSON at the end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config, document = load(args.config)
    if args.demo:
        config = _demo(config)
    config = nearby.hearing(config, args.hear)
    logging.basicConfig(level=config.log.level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("appliance.bus.mqtt").addFilter(_Once())
    names = assembly.choose(args.services, config)
    _guard(config, names)
    with _alone(config.paths, names):
        if args.demo:
            _forget(config.paths.state)
        services = assembly.build(config, document, names)
        picture = _observe(config, services) if not args.services or args.report else None
        _run(args, config, services)
    if picture and args.report:
        _write_report(args.report, picture)
    return 0


def _guard(config: Config, names: Sequence[str]) -> None:
    """Where secrets pass through this process's memory, that memory is not for files."""
    if names == ["vault"]:
        seclusion.seclude()
    elif "vault" in names or any(secrets.named(config)):
        seclusion.no_core_dumps()


class _Once(logging.Filter):
    """Each service has a session with the broker of its own; what all of them say within seconds is said once."""

    def __init__(self) -> None:
        super().__init__()
        self._said, self._at = "", 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        text, at = record.getMessage(), record.created
        is_repeated = text == self._said and abs(at - self._at) < REPEATED_S
        self._said, self._at = text, at
        return not is_repeated


def _demo(config: Config) -> Config:
    """The demo's state is its own."""
    paths = Paths(config.paths.state / "demo", config.paths.run)
    return msgspec.structs.replace(config, paths=paths, connectors={**config.connectors, **DEMO})


def _forget(state: Path) -> None:
    """The demo learns from nothing each time. Locks stay: a lock on a file that is gone keeps nobody out."""
    for path in state.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != LOCK:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(paths: Paths, names: Sequence[str]) -> Iterator[None]:
    """Two of a service would write the same files and take the bus from each other. StoreError where one runs."""
    with ExitStack() as locks:
        for folder in sorted({paths.state.resolve(), paths.run.resolve()}):  # they may be one
            for name in names:
                locks.enter_context(files.held(folder / f"{name}{LOCK}", f"runs '{name}'"))
        yield


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time in seconds above 0")
    return seconds


def _observe(config: Config, services: "list[Service]") -> "Picture":
    """An observer beside the services: it is stopped after those it listens to, and before the broker."""
    from appliance.services.picture import Picture

    picture = Picture(time.time_ns())
    place = sum(service.name in ("vault", "broker") for service in services)
    services.insert(place, assembly.observer(config, picture, _tell))
    return picture


def _tell(change: "Change") -> None:
    clock = datetime.fromtimestamp(change.at / 1e9).astimezone()
    print(f"{clock:%H:%M:%S}  {change.subject}: {change.text}", flush=True)


def _run(args: argparse.Namespace, config: Config, services: "list[Service]") -> None:
    import uvloop

    whole = not args.services  # one service of several processes does not speak for all of them
    if whole:
        instance.announce(config, args.config, args.demo, args.hear)
        print(_where_to_look(config), flush=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(config, services, args.seconds))
    finally:
        if whole:
            instance.retract()


async def _until_stopped(config: Config, services: "list[Service]", seconds: float | None) -> None:
    """BusError where no broker answered in all the seconds."""
    stop = asyncio.Event()
    if seconds is None:
        await group.run(services, stop)
        return
    asyncio.get_running_loop().call_later(seconds, stop.set)
    met = asyncio.Event()
    async with assembly.session(config) as bus:
        bus.on_connected(met.set)
        await group.run(services, stop)
        if not met.is_set() and config.bus.url:
            await bus.wait_connected(0)


def _where_to_look(config: Config) -> str:
    program = _program(Path(sys.argv[0]))
    return "\n".join(
        (
            "Millwright starts; Ctrl-C stops it. In another terminal:",
            f"  {program} watch              what it sees, live",
            f"  {program} alarms list        what is wrong",
            f"  mosquitto_pub {_reached(config)} -t mw/v1/reading/line1/pump -m '{{\"temperature\": 61.2}}'",
            "",
        )
    )


def _reached(config: Config) -> str:
    """mosquitto_pub's options for the broker."""
    from appliance.bus import address

    url = instance.bus_url(config)
    if url.startswith("unix:"):
        return f"--unix {url.removeprefix('unix:')}"
    broker = address.parse(url)
    trust = f" --cafile {config.bus.ca_file}" if broker.scheme == "mqtts" else ""
    return f"-h {broker.host} -p {broker.port}{trust}"


def _program(called: Path) -> str:
    """What a person types in this folder to call the same program."""
    if called.name != "millwright":
        return "python -m appliance"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


def _write_report(path: Path, picture: "Picture") -> None:
    from appliance.errors import StoreError

    text = msgspec.json.format(msgspec.json.encode(picture.summary(time.time_ns())), indent=2)
    try:
        files.write_atomic(path.absolute(), text + b"\n", mode=0o644)
    except StoreError as error:
        raise ConfigError(error.message, "Name a file that can be written with --report.") from error
