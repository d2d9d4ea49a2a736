"""`millwright forward`: what is sent elsewhere, what waits, and whether the destinations can be reached."""

import argparse
from typing import TYPE_CHECKING, Any

from appliance.cli import asking, instance
from appliance.errors import BusError

if TYPE_CHECKING:
    from appliance.config.schema import Config

ANSWER_S = 45.0
_CODES = """exit codes:
  0  done; status: every line is open; test: every destination works
  1  failed; status: a line is down or paused; test: a destination does not work
  2  wrong usage
  3  no Millwright answers, or it forwards nothing
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    shape = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "forward", help="what is sent elsewhere", description=__doc__, epilog=_CODES, formatter_class=shape
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _verb(verbs, "status", run_status, "how each line is, what was sent, what waits and what gave way")
    for verb, run, summary in (
        ("test", run_test, "try each destination on a line of its own"),
        ("pause", run_turn, "send nothing more; what comes in waits"),
        ("resume", run_turn, "go on; a line that is down is tried at once"),
    ):
        one = _verb(verbs, verb, run, summary)
        one.add_argument("name", metavar="NAME", nargs="?", default="", help="only this destination (default: all)")
        one.set_defaults(verb=verb)


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=f"{summary}.".capitalize(), epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run_status(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text

    config, _ = instance.configuration(args)
    picture = instance.play(_look(config))
    state = picture.services.get("forward")
    if state is None or not state.online:
        raise BusError("the service 'forward' does not run", "Name a destination: [forward.mqtt] in the configuration.")
    found: dict[str, dict[str, Any]] = state.detail.get("destinations", {})
    if args.json:
        print(json_text(found))
    else:
        print("\n".join(_table(found)))
    return 0 if all(one["line"] == "open" for one in found.values()) else 1


def run_test(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text, printable

    told = _asked(args)
    if args.json:
        print(json_text(told))
    else:
        for name, one in told.items():
            print(
                f"{name}: {printable(one['seen']) if one['works'] else 'does not work: ' + printable(one['problem'])}"
            )
            if one.get("remedy"):
                print(f"  -> {printable(one['remedy'])}")
    return 0 if all(one["works"] for one in told.values()) else 1


def run_turn(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text

    told = _asked(args)
    if args.json:
        print(json_text(told))
    else:
        print(f"{', '.join(told['names'])}: {'paused; what comes in waits' if told['paused'] else 'going on'}")
    return 0


def _table(found: dict[str, dict[str, Any]]) -> list[str]:
    from appliance.services.words import columns, moment, printable
    from appliance.store.outbox import SETTLED

    rows = [("DESTINATION", "LINE", "SINCE", "SENT", "WAITING", "ALARMS", "GAVE WAY", "")]
    for name, one in found.items():
        queued = one["queued"]
        rows.append(
            (
                printable(name),
                one["line"],
                moment(one["since"]),
                str(one["sent"]),
                str(sum(queued.values()) + one["uncommitted"]),
                str(queued.get("alarm", 0)),
                str(sum(count for reason, count in one["dropped"].items() if reason not in SETTLED)),
                printable(one["trouble"] or one["error"].partition("\n")[0]),
            )
        )
    lines = columns(rows)
    for name, one in found.items():
        remedy = one["error"].partition("\n  -> ")[2]
        lines += [f"{printable(name)}: {printable(one['notice'])}"] if one["notice"] else []
        lines += [f"{printable(name)} -> {printable(remedy)}"] if remedy else []
        lines += [f"{printable(name)}: {count} x {reason}" for reason, count in one["dropped"].items()]
    return lines


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    return asking.result(args, "forward", args.verb, {"name": args.name}, answer_s=ANSWER_S)


async def _look(config: "Config") -> Any:
    async with instance.session(config) as bus:
        return await instance.look(bus)
