"""`millwright update os`: another version of the whole system, tried beside the one that runs, and a way back.

    millwright update os plan [VERSION]     what it would mean: bytes, space, downtime, the vault, the way back
    millwright update os apply [VERSION]    fetch, rebuild, check and write it; the restart is yours, or --restart
    millwright update os rollback           give up what is being installed or tried

What was begun goes on where it was after any end. A version that comes up is blessed by its health, and committed; one
that does not is given up by the boot loader, and not tried again by itself. `guard` and `settle` are for the boot.

Exit codes: 0 done; 1 the plan forbids it, or it failed; `guard`: 0 bless, 1 do not.
"""

import argparse
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import MillwrightError

if TYPE_CHECKING:
    from appliance.cli.systems import Box
    from ota.system.book import Book, Update
    from ota.system.plan import Plan

FORBIDDEN = 1
DO_NOT = 1


def register(nouns: Any) -> None:
    verbs = nouns.add_parser(
        "os", help="the whole system", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).add_subparsers(title="verbs", metavar="VERB", required=True)
    _verb(verbs, "status", run_status, "what runs, what lies beside it, what is being installed")
    _which(_verb(verbs, "plan", run_plan, "what an update would mean; nothing is done"))
    apply = _verb(verbs, "apply", run_apply, "install a system, up to the restart")
    _which(apply)
    apply.add_argument("--again", action="store_true", help="even where it was given up here before")
    apply.add_argument("--restart", action="store_true", help="restart into it")
    apply.add_argument("--by-itself", action="store_true", help="as a timer asks: what [update] allows, when it does")
    _verb(verbs, "rollback", run_rollback, "give up what is being installed, or tried")
    _verb(verbs, "settle", run_settle, "after a boot was blessed: what the restart has shown")
    _verb(verbs, "guard", run_guard, "before a boot is blessed: is it the one that was counted?")


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=f"{summary}.".capitalize())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", nargs="?", default="", metavar="VERSION", help="(default: the newest)")
    parser.add_argument("--from", dest="place", default="", metavar="PLACE", help="a stick, a folder or an address")


# ---- for the boot ---------------------------------------------------------------------------------------------------


def run_guard(args: argparse.Namespace) -> int:
    """It reads the firmware's variables and nothing else: it must work where everything else does not."""
    from hardware.slots import guard, variables

    counted, selected = variables.text("LoaderBootCountPath"), variables.text("LoaderEntrySelected")
    ruling = guard.judge(counted, selected, variables.image_version())
    if args.json:
        _print_json({"bless": ruling.bless, "reason": ruling.reason})
    else:
        print(ruling.reason)
    return 0 if ruling.bless else DO_NOT


def run_settle(args: argparse.Namespace) -> int:
    from appliance.cli import systems

    with _alone(args) as box:
        book = systems.updater(box, None).settle(time.time_ns())
    _tell(args, book)
    return 0


# ---- for people -----------------------------------------------------------------------------------------------------


def run_status(args: argparse.Namespace) -> int:
    from appliance.cli import systems
    from appliance.services.words import columns

    with _translated():
        box = systems.here(*instance.configuration(args))
        standing, book = box.standing, systems.updater(box, None).book
    if args.json:
        _print_json({"standing": standing, "book": book})
        return 0
    rows = [("VERSION", "", "BOOTS LEFT")]
    for one in standing.entries:
        what = "runs" if one.version == standing.running else "given up" if one.bad else "beside it"
        rows.append((one.version, what, "for good" if one.tries_left is None else str(one.tries_left)))
    print("\n".join(columns(rows)))
    _tell(args, book)
    return 0


def run_plan(args: argparse.Namespace) -> int:
    from appliance.cli import systems

    with _translated():
        box = systems.here(*instance.configuration(args))
        found = systems.offered(box, args.version, args.place)
        book = systems.updater(box, found.repository).book
        plan = _planned(box, book, found.release, again=False)
    _show(args, plan)
    return 0 if plan.ok else FORBIDDEN


def run_apply(args: argparse.Namespace) -> int:
    from appliance.cli import systems, unattended

    if args.by_itself:
        return unattended.run(args, _alone)
    with _alone(args) as box:
        found = systems.offered(box, args.version, args.place)
        updater = systems.updater(box, found.repository)
        updater.settle(time.time_ns())
        plan = _planned(box, updater.book, found.release, args.again)
        if not plan.ok:
            _show(args, plan)
            return FORBIDDEN
        book = systems.install(
            box, updater, found, lambda step: None if args.json else print(f"{step} ...", flush=True)
        )
    _tell(args, book)
    if args.restart and book.active is not None:
        subprocess.run(["systemctl", "reboot"], check=False)
    return 0


def run_rollback(args: argparse.Namespace) -> int:
    from appliance.cli import systems
    from ota.system.book import Step

    with _alone(args) as box:
        updater = systems.updater(box, None)
        active = updater.settle(time.time_ns()).active
        if active is not None and active.step is Step.TRYING:
            systems.Slotted(box).reject()
        elif active is not None and active.step in (Step.WRITING, Step.WAITING):
            systems.Vaulted(box).commit()  # to the system that runs, and stays
        version = updater.give_up("a person gave it up", time.time_ns())
        runs = version == box.standing.running
    if args.json:
        _print_json({"version": version, "restart": runs})
    else:
        print(f"{version} is given up." + (" It runs still: restart, and the other one comes back." if runs else ""))
    return 0


def _planned(box: "Box", book: "Book", release: Any, again: bool) -> "Plan":
    from appliance.cli import systems
    from ota.system.plan import plan

    facts = systems.facts(box, book, release)
    if again:
        facts = replace(facts, refused={one: why for one, why in facts.refused.items() if one != release.version})
    return plan(release, facts)


@contextmanager
def _alone(args: argparse.Namespace) -> "Iterator[Box]":
    from appliance.cli import systems
    from appliance.runtime import files

    with _translated():
        box = systems.here(*instance.configuration(args))
        with files.held(box.folder / "lock", "updates the system"):
            yield box


@contextmanager
def _translated() -> Iterator[None]:
    from ota.errors import OtaError

    try:
        yield
    except OtaError as error:
        raise MillwrightError(error.message, error.remedy) from error


def _show(args: argparse.Namespace, plan: "Plan") -> None:
    from appliance.services.words import columns

    if args.json:
        _print_json({"ok": plan.ok, "version": plan.release.version, "fetch_bytes": plan.fetch_bytes,
                     "whole_bytes": plan.whole_bytes, "space_bytes": plan.space_bytes, "route": plan.route,
                     "findings": [vars(one) for one in plan.findings]})  # fmt: skip
        return
    print("\n".join(columns([(one.name, "ok" if one.ok else "NO", one.detail) for one in plan.findings])))
    for one in plan.findings:
        if not one.ok:
            print(f"  -> {one.name}: {one.remedy}")
    print("Nothing was done." if plan.ok else "It is not done.")


def _tell(args: argparse.Namespace, book: "Book") -> None:
    if args.json:
        _print_json(book)
        return
    print(_sentence(book.active) if book.active else "No system is being installed.")
    if book.history:
        last = book.history[-1]
        print(f"The last one, {last.version}, was {last.step}{f': {last.reason}' if last.reason else ''}.")
    if book.committed:
        print(f"Nothing older than {book.committed} is taken.")


def _sentence(active: "Update") -> str:
    waits = {
        "waiting": "it is tried at the next restart: systemctl reboot",
        "trying": "it runs, and is not blessed yet",
    }
    more = waits.get(active.step, active.reason or "millwright update os apply goes on")
    return f"{active.version} is {active.step}: {more}."


def _print_json(value: Any) -> None:
    from appliance.services.words import json_text

    print(json_text(value))
