"""`millwright update models`: installs a model of the detector, with a trial beside the one that runs and a way back.

It is copied in, verified and compiled; it judges beside the model that runs and is compared with it; it takes over
between two batches; it is watched, and rolled back by itself where it turns out worse. `[update]` has the criteria.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import BusError, MillwrightError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.events.schema import Command

ANSWER_S = 600.0  # what is large is read through before anything is said


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "update",
        help="install models: tried beside the one that runs, and rolled back",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nouns = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    verbs = nouns.add_parser("models", help="models of the detector").add_subparsers(
        title="verbs", metavar="VERB", required=True
    )
    _verb(verbs, "status", run_status, "what is being installed, and how far it is")
    _verb(verbs, "plan", run_plan, "what an update would mean; nothing is done").add_argument(
        "source", type=Path, metavar="FOLDER|FILE", help="a bundle, or one that was packed"
    )
    apply = _verb(verbs, "apply", run_apply, "install a model; `status` shows how far it is")
    apply.add_argument("source", type=Path, metavar="FOLDER|FILE", help="a bundle, or one that was packed")
    apply.add_argument("--again", action="store_true", help="even where it was refused or rolled back before")
    pause = _verb(verbs, "pause", run_pause, "begin no further step; what runs is watched on")
    pause.add_argument("--resume", action="store_true", help="go on")
    _verb(verbs, "rollback", run_rollback, "give up what is being installed, else go back from what was")
    _verb(verbs, "history", run_history, "what was installed, refused and rolled back, and why")


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=f"{summary}.".capitalize())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run_status(args: argparse.Namespace) -> int:
    config, _ = instance.configuration(args)
    picture = instance.play(_look(config))
    state = picture.services.get("update")
    if state is None or not state.online:
        raise BusError("the service 'update' does not run", "millwright run, or millwright run update")
    detect = picture.services.get("detect")
    choice = detect.detail.get("choice", {}) if detect is not None and detect.online else {}
    if args.json:
        _print_json({**state.detail, "detector": choice})
        return 0
    waiting = state.detail.get("installations", [])
    if state.detail.get("paused"):
        print("Paused: no further step is begun.")
    print("\n".join(_table(waiting)) if waiting else "Nothing is being installed.")
    for line in _compared(choice.get("comparison")):
        print(line)
    return 0


def run_plan(args: argparse.Namespace) -> int:
    from appliance.cli.measuring import size
    from appliance.services.words import columns

    plan = _asked(args, "plan", {"source": str(args.source.absolute())}).result
    if args.json:
        _print_json(plan)
        return 0
    compared = (
        f"with the model that runs, for {plan['shadow_minutes']:g} min and {plan['looks']} looks at least"
        if plan["compared"]
        else "not: the detector does not follow this name"
    )
    rows = [
        ("model", f"{plan['name']}@{plan['version']} ({plan['bundle'][:12]})"),
        ("route", f"from this box, {size(plan['bytes'])}"),
        ("space", f"{size(plan['free_bytes'])} free"),
        ("memory", f"at most {plan['memory_mb']} MB beside the model that runs"),
        ("compared", compared),
        ("watched", f"for {plan['watch_minutes']:g} min after it took over"),
        ("way back", plan["way_back"] or "none: it is the first of its name"),
    ]
    rows += [("waits for", ", ".join(plan["waits_for"]))] if plan["waits_for"] else []
    rows += [("refused", f"{plan['refused']}; only with --again")] if plan["refused"] else []
    rows += [("in use", "already")] if plan["in_use"] else []
    print("\n".join(columns(rows)))
    return 0


def run_apply(args: argparse.Namespace) -> int:
    asked = {"source": str(args.source.absolute()), "again": args.again}
    one = _asked(args, "apply", asked).result
    if args.json:
        _print_json(one)
        return 0
    print(f"{one['name']}@{one['version']} is {one['step']} ({one['bundle'][:12]})")
    print("  -> how far it is: millwright update models status")
    return 0


def run_pause(args: argparse.Namespace) -> int:
    answer = _asked(args, "pause", {"paused": not args.resume}).result
    if args.json:
        _print_json(answer)
    else:
        print("It is paused." if answer["paused"] else "It goes on.")
    return 0


def run_rollback(args: argparse.Namespace) -> int:
    one = _asked(args, "rollback", {}).result
    if args.json:
        _print_json(one)
    else:
        print(f"{one['name']}@{one['version']} is {'on its way back' if one['returning'] else one['step']}")
    return 0


def run_history(args: argparse.Namespace) -> int:
    told = _asked(args, "history", {}).result
    if args.json:
        _print_json(told)
    else:
        print("\n".join(_table(told["history"])) if told["history"] else "No model was ever installed here.")
    return 0


def _asked(args: argparse.Namespace, verb: str, asked: dict[str, Any]) -> "Command":
    from appliance.events.schema import CommandState
    from appliance.services.words import printable

    config, _ = instance.configuration(args)
    command = instance.play(_ask(config, verb, asked))
    if command.state is CommandState.FAILED:
        message, _, remedy = command.reason.partition("\n  -> ")
        raise MillwrightError(printable(message), printable(remedy))
    return command


async def _ask(config: "Config", verb: str, asked: dict[str, Any]) -> "Command":
    from appliance.cli.alarms import login
    from appliance.services import commands

    async with instance.session(config) as bus:
        return await commands.ask(bus, "update", verb, asked, login(), ANSWER_S)


async def _look(config: "Config") -> Any:
    async with instance.session(config) as bus:
        return await instance.look(bus)


def _table(installations: list[dict[str, Any]]) -> list[str]:
    from appliance.services.words import columns, moment, printable

    rows = [("MODEL", "STEP", "SINCE", "BY", "HASH", "")]
    for one in installations:
        step = "going back" if one["returning"] and one["step"] == "promoted" else one["step"]
        title = printable(f"{one['name']}@{one['version']}")
        since = moment(one["trail"][-1][1])
        rows.append((title, step, since, printable(one["by"]), one["bundle"][:12], printable(one["reason"])))
    return columns(rows)


def _compared(comparison: dict[str, Any] | None) -> list[str]:
    """What the detector says of the two models."""
    from appliance.services.words import columns, printable

    if not comparison:
        return []
    what = "watched beside the model before" if comparison["trusted"] else "compared with the model that runs"
    known = f"{comparison.get('known', 0)} assets known, {comparison.get('learning', 0)} being learned"
    head = f"\nIt is {what}: {comparison['looks']} looks, {known}"
    rows = [
        (f"  {printable(name)}", f"{value:.3g}", printable(limit), "" if holds else "NOT KEPT")
        for name, value, limit, holds in comparison["findings"]
    ]
    return [head, *columns(rows)]


def _print_json(value: Any) -> None:
    from appliance.services.words import json_text

    print(json_text(value))
