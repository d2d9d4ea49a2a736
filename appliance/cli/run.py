"""`millwright run`: the services, all in one process or only those that are named.

millwright run                      everything, broker included
millwright run detect               one service in a process of its own, as on the appliance
millwright run --demo               a simulated pump that fails after 75 s, state of its own
millwright run --seconds 60 --report report.json
"""

import argparse
import asyncio
import logging
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from appliance import assembly
from appliance.cli import instance
from appliance.config.load import load
from appliance.config.schema import Config, Paths
from appliance.errors import ConfigError
from appliance.runtime import group

if TYPE_CHECKING:
    from appliance.runtime.service import Service
    from appliance.services.picture import Change, Picture

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
    parser.add_argument("--seconds", type=float, metavar="N", help="stop by itself after N seconds")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was seen as JSON at the end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config, document = load(args.config)
    if args.demo:
        config = _demo(config)
    logging.basicConfig(level=config.log.level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    names = assembly.choose(args.services, config)
    services = assembly.build(config, document, names)
    picture = _observe(config, services) if not args.services or args.report else None
    _run(args, config, services)
    if picture and args.report:
        _write_report(args.report, picture)
    return 0


def _demo(config: Config) -> Config:
    """The demo learns from nothing each time: its state is its own and is wiped."""
    state = config.paths.state / "demo"
    shutil.rmtree(state, ignore_errors=True)
    return msgspec.structs.replace(
        config, paths=Paths(state, config.paths.run), connectors={**config.connectors, **DEMO}
    )


def _observe(config: Config, services: "list[Service]") -> "Picture":
    """An observer beside the services: it is stopped after those it listens to, and before the broker."""
    from appliance.services.picture import Picture

    picture = Picture(time.time_ns())
    place = 1 if services and services[0].name == "broker" else 0
    services.insert(place, assembly.observer(config, picture, _tell))
    return picture


def _tell(change: "Change") -> None:
    clock = datetime.fromtimestamp(change.at / 1e9).astimezone()
    print(f"{clock:%H:%M:%S}  {change.subject}: {change.text}", flush=True)


def _run(args: argparse.Namespace, config: Config, services: "list[Service]") -> None:
    import uvloop

    whole = not args.services  # one service of several processes does not speak for all of them
    if whole:
        instance.announce(config, args.config, args.demo)
        print(_where_to_look(config), flush=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(services, args.seconds))
    finally:
        if whole:
            instance.retract()


async def _until_stopped(services: "list[Service]", seconds: float | None) -> None:
    stop = asyncio.Event()
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, stop.set)
    await group.run(services, stop)


def _where_to_look(config: Config) -> str:
    program = _program(Path(sys.argv[0]))
    socket = instance.bus_url(config).removeprefix("unix:")
    return "\n".join(
        (
            "Millwright runs; Ctrl-C stops it. In another terminal:",
            f"  {program} watch              what it sees, live",
            f"  {program} alarms list        what is wrong",
            f"  mosquitto_pub --unix {socket} -t mw/v1/reading/line1/pump -m '{{\"temperature\": 61.2}}'",
            "",
        )
    )


def _program(called: Path) -> str:
    """What a person types in this folder to call the same program."""
    if called.name != "millwright":
        return "python -m appliance"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


def _write_report(path: Path, picture: "Picture") -> None:
    from appliance.errors import StoreError
    from appliance.runtime import files

    text = msgspec.json.format(msgspec.json.encode(picture.summary(time.time_ns())), indent=2)
    try:
        files.write_atomic(path.absolute(), text + b"\n")
    except StoreError as error:
        raise ConfigError(error.message, "Name a file that can be written with --report.") from error
