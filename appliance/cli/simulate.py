"""`millwright simulate FAULT`: a fault for the simulated pump, to see how it turns into an alarm.

millwright simulate leak            the fault begins now
millwright simulate none            it ends
"""

import argparse

from appliance.cli import asking

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
    answer = asking.ask(args, "ingest", "inject", {"fault": args.fault, "asset": args.asset})
    if args.json:
        return asking.print_json(answer)
    asking.granted(answer)
    if args.fault == "none":
        print(f"{args.asset}: healthy again")
    else:
        print(f"{args.asset}: {args.fault} begins; it shows in {' and '.join(answer.result['shows'])}")
    return 0
