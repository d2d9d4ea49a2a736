"""`millwright update models`: installs a model of the detector, with a trial beside the one that runs and a way back.

It is fetched, verified and compiled; it judges beside the model that runs and is compared with it; it takes over
between two batches; it is watched, and rolled back by itself where it turns out worse. `[update]` names repositories,
and has the criteria.

    millwright update models plan                      what the repositories offer, and what is taken by itself
    millwright update models plan pump                 what its newest version would mean: bytes, time, the way back
    millwright update models apply pump@1.3.0          take this version; --from /media/stick takes it from there
    millwright update models apply ./bundle            a bundle's folder, or one that was packed
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import asking, instance, systemupdates
from appliance.errors import BusError, MillwrightError

if TYPE_CHECKING:
    from appliance.config.schema import Config

ANSWER_S = 600.0  # what is large is read through before anything is said
GOES_ON = "It goes on by itself: 'millwright update models status' shows how far it is, 'rollback' gives it up."
REFUSED = 1
INTERRUPTED = 130


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "update",
        help="install models and systems: tried, and rolled back",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nouns = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    verbs = nouns.add_parser("models", help="models of the detector").add_subparsers(
        title="verbs", metavar="VERB", required=True
    )
    _verb(verbs, "status", run_status, "what is being installed, and how far it is")
    plan = _verb(verbs, "plan", run_plan, "what there is, or what an update would mean; nothing is done")
    _what(plan, optional=True)
    apply = _verb(verbs, "apply", run_apply, "install a model, and show how it goes until it runs")
    _what(apply)
    apply.add_argument("--again", action="store_true", help="even where it was refused or rolled back before")
    apply.add_argument("--detach", action="store_true", help="only ask for it")
    apply.add_argument("--wait", action="store_true", help="until it is confirmed, after it was watched")
    pause = _verb(verbs, "pause", run_pause, "begin no further step; what runs is watched on")
    pause.add_argument("--resume", action="store_true", help="go on")
    _verb(verbs, "rollback", run_rollback, "give up what is being installed, else go back from what was")
    _verb(verbs, "history", run_history, "what was installed, refused and rolled back, and why")
    systemupdates.register(nouns)


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=f"{summary}.".capitalize())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _what(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument(
        "what",
        nargs="?" if optional else None,
        default="",
        metavar="MODEL|MODEL@VERSION|FOLDER|FILE",
        help="a model of the repositories, or a bundle on this box",
    )
    parser.add_argument("--from", dest="place", default="", metavar="STICK", help="a stick, a folder or an address")


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
        print("Paused: no further step is begun.  -> millwright update models pause --resume")
    print("\n".join(_table(waiting)) if waiting else "Nothing is being installed.")
    for line in (*_far(state.detail), *_compared(choice.get("comparison"))):
        print(line)
    if (repository := state.detail.get("repository")) is not None:
        print("\n".join(["", *_repository(repository)]))
    return 0


def _far(detail: dict[str, Any]) -> list[str]:
    from appliance.cli.measuring import size
    from appliance.services.words import printable

    progress, closed = detail.get("progress"), detail.get("closed")
    lines = [f"{size(progress['bytes'])} of {size(progress['of'])}"] if progress and progress["of"] else []
    return lines + ([f"It does not change by itself now: {printable(closed)}"] if closed else [])


def _repository(told: dict[str, Any]) -> list[str]:
    """What the repositories say, as the box saw them last."""
    from appliance.services.words import columns, moment, printable

    lines = [f"Fleet {told['fleet']}, device {told.get('device', 'not known yet')}"]
    if "place" in told:
        lines.append(printable(f"{told['place']}, looked at {moment(told['looked_at'])}, state {told['snapshot']}"))
    lines += [f"On a stick: {printable(stick)}" for stick in told.get("sticks", ())]
    if told.get("trouble"):
        lines.append(f"Trouble: {printable(told['trouble'])}")
    if told.get("owed"):
        lines.append(f"Receipts that wait for a stick: {told['owed']}")
    offers = told.get("offers", [])
    if "place" in told and not offers:
        lines.append("It has nothing newer than what is in use here.")
    verdicts = {"take": "is taken", "wait": "later", "leave": "only when asked for"}
    rows = [
        (printable(f"{one['name']}@{one['version']}"), verdicts[one["choice"]], printable(one["reason"]))
        for one in offers
    ]
    return lines + columns([("OFFERED", "BY ITSELF", ""), *rows]) if offers else lines


def run_plan(args: argparse.Namespace) -> int:
    from appliance.cli.measuring import size
    from appliance.services.words import columns, printable, span

    if not args.what:
        return _run_offers(args)
    plan = _asked(args, "plan", _wanted(args))
    if args.json:
        _print_json(plan)
        return 0
    compared = (
        f"with the model that runs, for {plan['shadow_minutes']:g} min and {plan['looks']} looks at least"
        if plan["compared"]
        else "not: the detector does not follow this name"
    )
    took, takes = plan["running_opening_s"], plan["running_memory_mb"]
    rows = [
        ("model", printable(f"{plan['name']}@{plan['version']} ({plan['bundle'][:12]})")),
        ("route", printable(_route(plan))),
        ("space", _space(plan)),
        (
            "memory",
            f"at most {plan['memory_mb']} MB beside the model that runs{f', which took {takes:g}' if takes else ''}"
            f"{_applying(plan)}",
        ),
        ("compiling", f"about {span(max(took, 1.0))}, as the model that runs" if took else "not known before"),
        ("compared", compared),
        ("watched", f"for {plan['watch_minutes']:g} min after it took over"),
        ("way back", plan["way_back"] or "none: it is the first of its name"),
    ]
    if (itself := plan.get("by_itself")) is not None:
        verdict = {"take": "taken", "wait": "later", "leave": "no"}[itself["choice"]]
        rows += [("by itself", printable(f"{verdict}: {itself['reason']}"))]
    rows += [("waits for", printable(", ".join(plan["waits_for"])))] if plan["waits_for"] else []
    rows += [("refused", printable(f"{plan['refused']}; only with --again"))] if plan["refused"] else []
    rows += [("in use", "already")] if plan["in_use"] else []
    print("\n".join(columns(rows)))
    if plan["bytes"] > plan["free_bytes"] or plan.get("disk_bytes", 0) > plan["free_bytes"]:
        print(f"\nThere is no room for it: {size(plan['free_bytes'])} are free.\n  -> Make room on this disk.")
    return 0


def _route(plan: dict[str, Any]) -> str:
    from appliance.cli.measuring import size

    whole = plan.get("whole_bytes")
    beside = f"; whole it is {size(whole)}" if whole and plan["route"] not in ("whole", "local") else ""
    if plan["route"] == "local":
        return f"from this box, {size(plan['bytes'])}"
    if plan["route"] == "at hand":
        return "none: it is on this box already"
    return f"{plan['route']} from {plan['place']}, {plan['bytes']:,} bytes{beside}"


def _applying(plan: dict[str, Any]) -> str:
    from appliance.cli.measuring import size

    taken = plan.get("applying_bytes", 0)
    return f"; applying the difference takes at most {size(taken)} before" if taken else ""


def _space(plan: dict[str, Any]) -> str:
    from appliance.cli.measuring import size

    free = f"{size(plan['free_bytes'])} free"
    if "disk_bytes" not in plan:
        return free
    return f"{size(plan['disk_bytes'])} on its way in, of {size(plan['budget_bytes'])} that it may take; {free}"


def _run_offers(args: argparse.Namespace) -> int:
    """Look at the repositories now."""
    if args.place:
        raise MillwrightError("--from names where a model comes from", "Name the model, too: plan MODEL --from STICK")
    told = _asked(args, "look", {})
    if args.json:
        _print_json(told)
        return 0
    print("\n".join(_repository(told)))
    return 0


def run_apply(args: argparse.Namespace) -> int:
    from appliance.services.words import printable

    asked = {**_wanted(args), "again": args.again}
    if args.detach:
        one = _asked(args, "apply", asked)
        if args.json:
            _print_json(one)
            return 0
        print(printable(f"{one['name']}@{one['version']} is {one['step']} ({one['bundle'][:12]})"))
        print("  -> how far it is: millwright update models status")
        return 0
    config, _ = instance.configuration(args)
    try:
        one = instance.play(_apply(config, asked, args))
    except KeyboardInterrupt:
        if not args.json:
            print(f"\n{GOES_ON}")
        return INTERRUPTED
    if not args.json:
        print(_outcome(one, config))
    return REFUSED if one["step"] in ("refused", "rolled-back") else 0


async def _apply(config: "Config", asked: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Ask for it, and follow it until it runs."""
    from appliance.cli import following
    from appliance.cli.following import Followed
    from appliance.services import commands

    settings = config.update

    def enough(followed: Followed) -> bool:
        return followed.step == following.PROMOTED and not (args.wait or followed.one["returning"])

    async with instance.session(config) as bus:
        one = asking.granted(await commands.ask(bus, "update", "apply", asked, asking.login(), ANSWER_S))
        followed = Followed(one, settings.looks, 60 * settings.shadow_minutes)
        await following.follow(bus, followed, following.view(args.json), enough)
        return followed.one


def _outcome(one: dict[str, Any], config: "Config") -> str:
    from appliance.services.words import printable

    title = printable(f"{one['name']}@{one['version']}")
    if one["step"] == "confirmed":
        return f"{title} runs, and is confirmed."
    if one["step"] == "promoted":
        return f"{title} runs, and is watched for {config.update.watch_minutes:g} min. {GOES_ON}"
    return f"{title} was {one['step'].replace('-', ' ')}: {printable(one['reason'])}"


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    """A path where it looks like one, or is one; else a model's name."""
    what: str = args.what
    if what.startswith((".", "~")) or os.sep in what or (not args.place and Path(what).exists()):
        if args.place:
            raise MillwrightError(f"{what} is a bundle on this box", "Leave --from out, or name a model.")
        return {"source": str(Path(what).expanduser().absolute())}
    place = args.place
    if place and "://" not in place:
        place = str(Path(place).expanduser().absolute())
    return {"model": what, "place": place}


def run_pause(args: argparse.Namespace) -> int:
    answer = _asked(args, "pause", {"paused": not args.resume})
    if args.json:
        _print_json(answer)
    else:
        print("It is paused." if answer["paused"] else "It goes on.")
    return 0


def run_rollback(args: argparse.Namespace) -> int:
    one = _asked(args, "rollback", {})
    if args.json:
        _print_json(one)
    else:
        print(f"{one['name']}@{one['version']} is {'on its way back' if one['returning'] else one['step']}")
    return 0


def run_history(args: argparse.Namespace) -> int:
    told = _asked(args, "history", {})
    if args.json:
        _print_json(told)
    else:
        print("\n".join(_table(told["history"])) if told["history"] else "No model was ever installed here.")
    return 0


def _asked(args: argparse.Namespace, verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    return asking.result(args, "update", verb, asked, answer_s=ANSWER_S)


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
        by = printable(one["by"]) or "itself"
        rows.append((title, step, since, by, one["bundle"][:12], printable(one["reason"])))
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
    return [head, *columns([("", "", "", ""), *rows])[1:]] if rows else [head]


def _print_json(value: Any) -> None:
    from appliance.services.words import json_text

    print(json_text(value))
