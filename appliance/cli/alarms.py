"""`millwright alarms`: what is wrong, and what a person says of it (ISA-18.2: acknowledge, shelve, unshelve).

`normal` and `fault` say what it was: the detector learns from that at once, and the word is kept as a label for
training. `normal ASSET` without an alarm says that the asset was healthy while it learned.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from appliance.cli import asking, history, instance
from appliance.errors import BusError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.events.schema import Alarm

WAITING = 4  # exit code of `list`: an alarm waits to be acknowledged
MOST_MINUTES = 31 * 24 * 60  # that detect shelves an alarm for

_CODES = f"""exit codes of 'list':
  0  no alarm waits to be acknowledged
  {WAITING}  at least one alarm waits to be acknowledged
exit codes of all:
  1  refused, for example because no such alarm stands
  2  wrong usage
  3  no Millwright answers
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "alarms",
        help="list, acknowledge, shelve alarms",
        description=__doc__,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = verbs.add_parser(
        "list", help="the standing alarms", epilog=_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listing.add_argument(
        "--all", action="store_true", help="also those that ended; reads the record, whether Millwright runs or not"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)
    _verb(verbs, "ack", "say that somebody has seen it")
    shelve = _verb(verbs, "shelve", "be quiet about it for a while")
    shelve.add_argument("--minutes", type=_minutes, required=True, metavar="N", help="for how long")
    _verb(verbs, "unshelve", "take it from the shelf")
    _span(_verb(verbs, "normal", "say that it was normal: the alarm ends, and such a state raises no other"))
    _span(_verb(verbs, "fault", "say that it was a fault: it is never learned as normal"))
    _verb(verbs, "relearn", "let an asset learn anew what is normal; its alarms end")
    labels = verbs.add_parser("labels", help="what was called normal or a fault", description="What people said.")
    labels.add_argument("asset", metavar="ASSET", nargs="?", help="only of this asset")
    labels.add_argument("--json", action="store_true", help="print JSON")
    labels.set_defaults(run=run_labels)


def _verb(verbs: Any, verb: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(verb, help=summary, description=f"{summary}.".capitalize())
    parser.add_argument("alarm", metavar="ID|ASSET", help="the alarm's id, or the asset it stands for")
    parser.add_argument("--by", metavar="NAME", default="", help="who says it (default: the login name)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_verb, verb=verb)
    return parser


def _span(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="WHEN", help="2h, 30m, 7d (ago), or 2026-11-21T08:00 (default: the alarm's)")
    parser.add_argument("--until", metavar="WHEN", help="the same forms")


def run_list(args: argparse.Namespace) -> int:
    from appliance.services.words import alarm_summary, json_text

    config, _ = instance.configuration(args)
    found, asked = (_recorded(config), "") if args.all else instance.play(_standing(config))
    alarms = [alarm_summary(asset, alarm) for asset, alarm in found]
    waiting = sum(alarm["state"] in ("unacknowledged", "returned") for alarm in alarms)
    if args.json:
        print(json_text({"at": time.time_ns(), "waiting": waiting, "alarms": alarms}))
    elif alarms:
        print("\n".join(_table(alarms)))
    else:
        print("No alarm was ever recorded." if args.all else "No alarm stands.")
    if asked and not args.json:
        print(asked)
    return WAITING if waiting else 0


async def _standing(config: "Config") -> "tuple[list[tuple[str, Alarm]], str]":
    """Alarms, and what the box asks."""
    from appliance.services.words import healthy_text

    async with instance.session(config) as bus:
        picture = await instance.look(bus)
    return picture.standing(), healthy_text(*picture.unconfirmed())


def _recorded(config: "Config") -> "list[tuple[str, Alarm]]":
    """Those that stand first, where a Millwright runs, then what was recorded, the newest first."""
    from appliance.store import alarms

    try:
        standing, _ = instance.play(_standing(config))
    except BusError:
        standing = []  # the record can be read without it
    known = {alarm.id for _, alarm in standing}
    return standing + [
        change for change in alarms.latest(config.paths.state / alarms.FILE) if change[1].id not in known
    ]


def _table(alarms: list[dict[str, Any]]) -> list[str]:
    from appliance.services.words import amount, columns, moment, printable, span

    now = time.time_ns()
    rows = [("ID", "SEVERITY", "ASSET", "STATE", "SINCE", "FOR", "CAUSE", "SCORE", "LIMIT", "BY", "WHAT")]
    rows += [
        (
            printable(alarm["id"]),
            alarm["severity"],
            alarm["asset"],
            alarm["state"],
            moment(alarm["raised"]),
            span(((alarm["at"] if alarm["state"] == "normal" else now) - alarm["raised"]) / 1e9),
            printable(alarm["cause"]),
            amount(alarm["score"]),
            amount(alarm["threshold"]),
            printable(alarm["by"]),
            " ".join(printable(text) for text in (_about(alarm), alarm["message"]) if text),
        )
        for alarm in alarms
    ]
    return columns(rows)


def _about(alarm: dict[str, Any]) -> str:
    return "" if alarm["condition"] == "anomaly" else f"{alarm['condition']}:"


def run_labels(args: argparse.Namespace) -> int:
    from appliance.services.words import columns, json_text, moment, printable
    from appliance.store import alarms, labels

    config, _ = instance.configuration(args)
    found = labels.read(config.paths.state / alarms.FILE, args.asset)
    if args.json:
        import msgspec

        print(json_text([{"asset": asset, **msgspec.to_builtins(label)} for asset, label in found]))
        return 0
    rows = [("SAID", "ASSET", "WAS", "SINCE", "UNTIL", "BY", "ALARM", "ABOUT", "CAUSE")]
    rows += [
        (
            moment(label.at),
            asset,
            label.verdict.value,
            moment(label.since),
            moment(label.until),
            printable(label.by),
            printable(label.alarm),
            printable(label.condition),
            printable(label.cause),
        )
        for asset, label in found
    ]
    print("\n".join(columns(rows)) if found else "Nobody has called anything normal or a fault yet.")
    return 0


def run_verb(args: argparse.Namespace) -> int:
    from appliance.services.words import printable

    details = {"alarm": args.alarm}
    if args.verb == "shelve":
        details["minutes"] = args.minutes
    details |= {name: at for name, at in _times(args).items() if at is not None}
    command = asking.ask(args, "detect", args.verb, details, args.by)
    if args.json:
        return asking.print_json(command)
    asking.granted(command)
    result = {name: printable(str(value)) for name, value in command.result.items()}
    alarm = f"alarm {result['alarm']} is " if result.get("alarm") else ""
    verdict = f", called {result['verdict']}" if "verdict" in result else ""
    print(f"{result.get('asset', args.alarm)}: {alarm}{result.get('state', 'done')}{verdict}")
    if "advice" in result:
        print(result["advice"])
    return 0


def _times(args: argparse.Namespace) -> dict[str, int | None]:
    now = time.time_ns()
    asked = {name: getattr(args, name, None) for name in ("since", "until")}
    return {name: history.moment(f"--{name}", text, now) if text else None for name, text in asked.items()}


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0 and at most {MOST_MINUTES} (31 days)")
    return minutes
