"""`millwright simulate FAULT`: a fault for the simulated pump, to see how it turns into an alarm.

millwright simulate leak            the fault begins now
millwright simulate none            it ends
"""

import argparse
from typing import TYPE_CHECKING

from appliance.cli import instance
from appliance.errors import MillwrightError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.events.schema import Command

DEMO_ASSET = "demo/pump"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from appliance.connectors._pump import SHOWS

    parser = subparsers.add_parser(
        "simulate",
        help="give the simulated pump a fault",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fault", choices=[*SHOWS, "none"], metavar="FAULT", help=", ".join([*SHOWS, "none"]))
    parser.add_argument("--asset", default=DEMO_ASSET, help=f"the simulated asset (default {DEMO_ASSET})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from appliance.events.schema import CommandState
    from appliance.services.words import json_text, printable

    config, _ = instance.configuration(args)
    answer = instance.play(_ask(config, args.fault, args.asset))
    failed = answer.state is CommandState.FAILED
    if args.json:
        reason = {"reason": answer.reason} if failed else {}
        print(json_text({"state": answer.state.value, **answer.result, **reason}))
        return 1 if failed else 0
    if failed:
        message, _, remedy = answer.reason.partition("\n  -> ")
        raise MillwrightError(printable(message), printable(remedy))
    if args.fault == "none":
        print(f"{args.asset}: healthy again")
    else:
        print(f"{args.asset}: {args.fault} begins; it shows in {' and '.join(answer.result['shows'])}")
    return 0


async def _ask(config: "Config", fault: str, asset: str) -> "Command":
    from appliance.cli.alarms import login
    from appliance.services import commands

    async with instance.session(config) as bus:
        return await commands.ask(bus, "ingest", "inject", {"fault": fault, "asset": asset}, login())
