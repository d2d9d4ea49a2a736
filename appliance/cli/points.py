"""`millwright points`: set what devices may be told, a switch or a number, where the configuration declares it."""

import argparse
from typing import Any

from appliance.cli import asking

ANSWER_S = 20.0


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("points", help="switches and set points of devices", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _verb(verbs, "list", run_list, "what may be set, within which limits, and what it was last set to")
    setting = _verb(verbs, "set", run_set, "tell a device; what wants to be confirmed waits for a minute")
    setting.add_argument("asset", metavar="ASSET")
    setting.add_argument("point", metavar="POINT")
    setting.add_argument("value", metavar="VALUE", type=_value, help="on, off, true, false, or a number")
    confirm = _verb(verbs, "confirm", run_confirm, "let an order go ahead, by the word that it was given")
    confirm.add_argument("word", metavar="WORD")


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=f"{summary}.".capitalize())
    parser.add_argument("--by", metavar="NAME", default="", help="who says it (default: the login name)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run_list(args: argparse.Namespace) -> int:
    from appliance.services.words import amount, columns, json_text, printable

    found = _asked(args, "points", {})["points"]
    if args.json:
        print(json_text(found))
        return 0
    rows = [("ASSET", "POINT", "TYPE", "FROM", "TO", "CONFIRMATION", "LAST")]
    for one in found:
        limits = (amount(one["min"]), amount(one["max"])) if one["type"] == "number" else ("off", "on")
        last = "" if one["last"] is None else str(one["last"])
        rows.append((printable(one["asset"]), printable(one["point"]), one["type"], *limits, one["confirmation"], last))
    print("\n".join(columns(rows)) if found else "Nothing may be set. Declare points under [[points]].")
    return 0


def run_set(args: argparse.Namespace) -> int:
    return _told(args, _asked(args, "set", {"asset": args.asset, "point": args.point, "value": args.value}))


def run_confirm(args: argparse.Namespace) -> int:
    return _told(args, _asked(args, "confirm", {"word": args.word}))


def _told(args: argparse.Namespace, result: dict[str, Any]) -> int:
    from appliance.services.words import json_text, printable

    if args.json:
        print(json_text(result))
    elif result["done"]:
        print(f"{printable(result['asset'])}: {printable(result['point'])} is set to {result['value']}")
    else:
        print(f"It waits to be confirmed, for a minute:\n  -> millwright points confirm {printable(result['word'])}")
    return 0


def _asked(args: argparse.Namespace, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    return asking.result(args, "ingest", verb, asked, args.by, ANSWER_S)


def _value(text: str) -> bool | float:
    if text.lower() in ("on", "true"):
        return True
    if text.lower() in ("off", "false"):
        return False
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither on, off nor a number") from None
