"""`millwright connector`: is a source of readings there, and what does it say on the wire?

millwright connector list                 those of the configuration
millwright connector test modbus          each slave asked once, with the bytes that went and came
millwright connector test serial-2        the second [[connectors.serial]]
millwright connector test discovery       the devices that are found by themselves

It opens the source by itself: a serial line or a port that a running Millwright holds is busy for as long as that runs.
"""

import argparse
import time
from typing import TYPE_CHECKING

from appliance.cli import instance
from appliance.errors import ConfigError, ConnectorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from appliance.config.document import Document
    from appliance.config.schema import Config
    from appliance.connectors.port import Arrival, Connector

SHOWN = 20  # arrivals
NOTHING = 1  # exit code: nothing came


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "connector",
        help="is a source of readings there, and what does it say",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="the connectors of the configuration")
    listing.set_defaults(run=run_list)
    test = verbs.add_parser("test", help="open one and show what is on the wire")
    test.add_argument("name", metavar="NAME", help="as in `list`")
    test.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long to listen (%(default)g)")
    test.set_defaults(run=run_test)


def run_list(args: argparse.Namespace) -> int:
    config, document = instance.configuration(args)
    for name in _connectors(config, document):
        print(name)
    return 0


def run_test(args: argparse.Namespace) -> int:
    config, document = instance.configuration(args)
    known = _connectors(config, document)
    if args.name not in known:
        raise ConfigError(f"no connector is called '{args.name}'", f"There are: {', '.join(known) or 'none'}.")
    return instance.play(_test(known[args.name], args.seconds))


def _connectors(config: "Config", document: "Document") -> "dict[str, Connector]":
    """By the names under which ingest shows them."""
    from appliance import assembly, connecting
    from appliance.connectors import configured

    means = assembly.means(config, document, lambda _: None)
    found: dict[str, Connector] = {}
    for name, settings in configured(document, config.connectors):
        made = connecting.connector(name, settings, means)
        number = 1 + sum(other.rpartition("-")[0] == name or other == name for other in found)
        found[name if number == 1 else f"{name}-{number}"] = made
    if config.devices.discover:
        found[connecting.DISCOVERY] = connecting.discovery(means)
    return found


async def _test(connector: "Connector", seconds: float) -> int:
    from appliance.connectors.port import Diagnosable
    from appliance.services.words import printable

    if isinstance(connector, Diagnosable):
        async for line in connector.diagnose():
            print(printable(line))
        return 0
    seen = await _listen(connector, seconds)
    ledger = connector.ledger
    print(f"{ledger.received} samples seen, {ledger.processed} good")
    for reason, count in ledger.dropped.items():
        print(f"  {reason}: {count}; {printable(ledger.examples.get(reason, ''))}")
    if not seen:
        print(f"Nothing came within {seconds:g} s.")
    return 0 if seen else NOTHING


async def _listen(connector: "Connector", seconds: float) -> int:
    """How many arrivals were shown."""
    from appliance.runtime.patience import within

    shown = 0

    async def read(batches: "AsyncIterator[list[Arrival]]") -> None:
        nonlocal shown
        async for batch in batches:
            for arrival in batch:
                print(_told(arrival))
                shown += 1
                if shown >= SHOWN:
                    return

    began = time.monotonic()
    try:
        async with connector:
            print(f"open after {time.monotonic() - began:.2f} s; listening for {seconds:g} s")
            await within(seconds, read(aiter(connector)))
    except ConnectorError as error:
        if not shown:
            raise
        print(error)
    return shown


def _told(arrival: "Arrival") -> str:
    from appliance.events.schema import Block, Device
    from appliance.services.words import amount, printable

    match arrival.event:
        case Device() as device:
            told = " ".join(text for text in (device.maker, device.model) if text)
            return f"{arrival.asset}  device '{printable(device.name)}' {printable(told)}, {len(device.units)} points"
        case Block() as block:
            return f"{arrival.asset}  block of {len(block.values)} points at {block.rate:g} Hz"
        case reading:
            values = ", ".join(
                f"{printable(name)} = {amount(value)}" for name, value in list(reading.values.items())[:8]
            )
            more = f", and {len(reading.values) - 8} more" if len(reading.values) > 8 else ""
            return f"{arrival.asset}  {values}{more}"
