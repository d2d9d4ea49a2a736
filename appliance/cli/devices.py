"""`millwright devices`: what was found on the wall, and who may reach this box over TLS.

millwright devices list                              what speaks Zigbee2MQTT, Tasmota, Shelly, ... and what it is
millwright devices show zigbee2mqtt/0x00158d0001     its points, units and troubles
millwright devices rename zigbee2mqtt/0x00158d0001 'Feed pump'    its history stays: only the label changes
millwright devices ignore 'Hall lamp'                its readings are left out; --undo takes them in again
millwright devices forget 'Hall lamp'                gone from the list; found anew if it still speaks

millwright devices certify pump-3 --asset line1/pump --out pump-3/    key, certificate and authority for the device
millwright devices certify plc-7 --asset line2/press --request plc-7.csr --out plc-7/    the key stays on the device
millwright devices certified                         who was certified
millwright devices revoke pump-3
"""

import argparse
import secrets
import time
from typing import TYPE_CHECKING, Any

from appliance.cli import asking, certifying, instance, nearby
from appliance.errors import BusError, EventError, MillwrightError

if TYPE_CHECKING:
    from appliance.bus.port import Bus
    from appliance.config.schema import Config
    from appliance.events.schema import Device


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "devices",
        help="what was found, and who may reach this box over TLS",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="the devices that were found")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)
    show = _verb(verbs, "show", "all that is known of a device", run_show)
    show.set_defaults(verb="show")
    rename = _verb(verbs, "rename", "give it a name; its asset and its history stay", run_verb)
    rename.add_argument("name", metavar="NAME", help="'' gives it back its own")
    ignore = _verb(verbs, "ignore", "leave its readings out", run_verb)
    ignore.add_argument("--undo", action="store_true", help="take them in again")
    _verb(verbs, "forget", "drop what is remembered of it", run_verb)
    certifying.register(verbs)


def _verb(verbs: Any, verb: str, summary: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(verb, help=summary, description=f"{summary}.".capitalize())
    parser.add_argument("device", metavar="DEVICE", help="its asset or its name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, verb=verb)
    return parser


def run_list(args: argparse.Namespace) -> int:
    from appliance.services.words import columns, json_text, printable

    config, document = instance.configuration(args)
    found = instance.play(_devices(config))
    if args.json:
        print(json_text({"at": time.time_ns(), "devices": [_plain(asset, device) for asset, device in found]}))
        return 0
    if not found:
        print("\n".join(instance.play(nearby.advice(config, document.source if document.tables else ""))))
        return 0
    rows = [("ASSET", "NAME", "MAKER", "MODEL", "POINTS", "STANDING", "TROUBLE")]
    for asset, one in found:
        name, maker, model = (printable(text) for text in (one.name, one.maker, one.model))
        trouble = printable(one.trouble.partition("\n")[0])[:60]
        rows.append((asset, name, maker, model, str(len(one.units)), _standing(one), trouble))
    print("\n".join(columns(rows)))
    return 0


def run_show(args: argparse.Namespace) -> int:
    from appliance.protocols import units
    from appliance.services.words import json_text, moment, printable

    config, _ = instance.configuration(args)
    asset, device = _chosen(instance.play(_devices(config)), args.device)
    if args.json:
        print(json_text(_plain(asset, device)))
        return 0
    told = {
        "asset": asset,
        "name": device.name,
        "maker": device.maker,
        "model": device.model,
        "firmware": device.version,
        "found by": device.source,
        "identity": device.identity,
        "standing": _standing(device),
        "changed": moment(device.at),
    }
    for word, text in told.items():
        if text:
            print(f"{word:<10}{printable(text)}")
    for name, unit in sorted(device.units.items()):
        can_be_set = "  can be set" if name in device.settable else ""
        print(f"  {printable(name):<40}{units.shown(unit):<10}{can_be_set}".rstrip())
    if device.trouble:
        problem, _, remedy = device.trouble.partition("\n  -> ")
        print(f"trouble   {printable(problem)}" + (f"\n  -> {printable(remedy)}" if remedy else ""))
    return 0


def run_verb(args: argparse.Namespace) -> int:
    from appliance.services.words import printable

    asked: dict[str, Any] = {"device": args.device}
    if args.verb == "rename":
        asked["name"] = args.name
    elif args.verb == "ignore":
        asked["ignored"] = not args.undo
    command = asking.ask(args, "ingest", args.verb, asked)
    if args.json:
        return asking.print_json(command)
    asking.granted(command)
    result = {name: printable(str(value)) for name, value in command.result.items()}
    print(_said(args, result))
    return 0


def _said(args: argparse.Namespace, result: dict[str, str]) -> str:
    match args.verb:
        case "rename":
            return f"{result['asset']} is called '{result['name']}'; its history stays with it."
        case "ignore" if args.undo:
            return f"{result['asset']}: its readings are taken in again."
        case "ignore":
            return f"{result['asset']}: its readings are left out."
    return f"{result['asset']} is forgotten; if it still speaks it is found anew."


async def _devices(config: "Config") -> "list[tuple[str, Device]]":
    async with instance.session(config) as bus:
        return await found(bus)


async def found(bus: "Bus") -> "list[tuple[str, Device]]":
    """Every device that the broker keeps, by asset."""
    from appliance.events import codec, topics
    from appliance.events.schema import Command, CommandState, Device, Kind
    from appliance.runtime.patience import within

    devices: dict[str, Device] = {}
    # The broker answers in order: when our own message comes back, everything it keeps has come before.
    fence = topics.command("cli", "devices", secrets.token_hex(6))

    async def feed() -> None:
        async with bus.subscribe(topics.everything(Kind.DEVICE), fence, qos=1) as batches:
            bus.publish(fence, codec.encode(Command(time.time_ns(), CommandState.INIT)), qos=1)
            async for batch in batches:
                for message in batch:
                    if message.topic == fence:
                        return
                    if message.payload:
                        _take(devices, message.topic, message.payload)

    if not await within(instance.PATIENCE_S * 2, feed()):
        raise BusError("the broker does not hand out what it keeps", "See 'millwright doctor'.")
    return sorted(devices.items())


def _take(devices: "dict[str, Device]", topic: str, payload: bytes) -> None:
    from appliance.events import codec, topics
    from appliance.events.schema import Device, Kind

    try:
        device = codec.decode(Kind.DEVICE, payload, time.time_ns())
        assert isinstance(device, Device)
        devices[topics.parse(topic).path] = device
    except EventError:
        return  # somebody else wrote there; ingest writes over it at its next start


def _chosen(devices: "list[tuple[str, Device]]", text: str) -> "tuple[str, Device]":
    named = [one for one in devices if one[0] == text] or [
        one for one in devices if one[1].name.casefold() == text.casefold()
    ]
    if len(named) > 1:
        paths = ", ".join(asset for asset, _ in named[:5])
        raise MillwrightError(f"{len(named)} devices are called '{text}'", f"Name one: {paths}.")
    if not named:
        raise MillwrightError(f"there is no device '{text}'", "See 'millwright devices list'.")
    return named[0]


def _standing(device: "Device") -> str:
    if device.ignored:
        return "ignored"
    return {True: "available", False: "gone", None: ""}[device.available]


def _plain(asset: str, device: "Device") -> dict[str, Any]:
    import msgspec

    return {"asset": asset, **msgspec.to_builtins(device)}
