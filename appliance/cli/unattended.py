"""`millwright update os apply --by-itself`: what a timer asks for, on a box that nobody visits.

Whatever is left undone is said in one line, with 0: what is to be done is done an hour later. 1 is for what a person
must know.
"""

import argparse
import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import BusError, ConfigError, HeldError, StoreError
from ota.campaign import Choice, Decision
from ota.errors import FetchError
from ota.system import unattended
from ota.system.unattended import Act, Present, Ruling

if TYPE_CHECKING:
    from appliance.cli.systems import Box, Offered
    from appliance.config.schema import Config
    from appliance.config.updating import Update as Settings
    from ota.system.book import Update

FORBIDDEN = 1
MINUTE = 60_000_000_000  # ns


def run(args: argparse.Namespace, alone: "Callable[[argparse.Namespace], AbstractContextManager[Box]]") -> int:
    if args.version or args.place or args.again:
        raise ConfigError("--by-itself takes the newest of the sources", "Leave VERSION, --from and --again out.")
    config, _ = instance.configuration(args)
    decision = decided(config.update, time.time_ns())
    if decision.choice is not Choice.TAKE:  # before anything of the slots or the disk is touched
        return _told(args, Ruling(Act.REST, decision.reason))
    try:
        with alone(args) as box:
            ruling = _done(box, lambda step: None if args.json else print(f"{step} ...", flush=True))
    except HeldError as error:
        ruling = Ruling(Act.REST, error.message)  # a person is at it: no fault that a unit should fail with
    code = _told(args, ruling)
    if args.restart and ruling.act is Act.RESTART:
        restart()
    return code


def decided(settings: "Settings", now: int) -> Decision:
    """By the policy of models, in the zone of this box's day."""
    from appliance import updating
    from ota.wanted import Policy, unspoken

    return unspoken(Policy(settings.system), updating.hours(settings), datetime.fromtimestamp(now / 1e9).astimezone())


def held(detail: Mapping[str, Any], settings: "Settings", now: int) -> str:
    """What models wait for, too, by what the update service tells of itself: a person's pause, and a model that is
    being compared or watched, for as long as that was meant to take. A fault shall have one cause."""
    if detail.get("paused"):
        return "updates are paused on this box"
    minutes = {"shadow": settings.shadow_minutes, "promoted": settings.watch_minutes}
    for one in detail.get("installations", ()):
        step, since = one["trail"][-1]
        if now - since < minutes.get(step, 0.0) * MINUTE:
            return f"{one['name']}@{one['version']} is {step}: one change at a time"
    return ""


def restart() -> None:
    """StoreError where systemd refuses."""
    done = subprocess.run(["systemctl", "reboot"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"the restart is refused: {done.stderr.strip()[-200:]}", "It is asked for again in an hour.")


def _done(box: "Box", tell: Callable[[str], None]) -> Ruling:
    """All there is to do before a restart; what a line that is down leaves undone is no failure."""
    from appliance.cli import systems

    active = systems.updater(box, None).settle(time.time_ns()).active
    ruling = unattended.rule(decided(box.config.update, time.time_ns()), active, _present(box))
    if ruling.act is not Act.INSTALL:
        return ruling
    try:
        found = _found(box, active)
        ruling, active = _installed(box, found, tell)
    except FetchError as error:
        return Ruling(Act.REST, error.line)
    if ruling.act is not Act.INSTALL:
        return ruling
    # Hours may have passed since it was asked whether it is the time.
    return unattended.rule(decided(box.config.update, time.time_ns()), active, _present(box))


def _found(box: "Box", active: "Update | None") -> "Offered":
    """The newest one; what was begun, where that one is not newer."""
    from appliance.cli import systems

    found = systems.offered(box, "")
    if active is None or unattended.overtaken(active, found.release.version, _hash(found.signed)):
        return found
    return found if found.release.version == active.version else systems.offered(box, active.version)


def _installed(box: "Box", found: "Offered", tell: Callable[[str], None]) -> "tuple[Ruling, Update | None]":
    """Up to the restart, where nothing speaks against it."""
    from appliance.cli import systems
    from ota.system.book import Step
    from ota.system.plan import plan

    updater, release = systems.updater(box, found.repository), found.release
    active = updater.book.active
    if active is not None and (why := unattended.overtaken(active, release.version, _hash(found.signed))):
        if active.step is Step.WRITING:
            systems.Vaulted(box).commit()  # to the system that runs, and stays
        updater.give_up(why, time.time_ns())
    ruling = unattended.judged(plan(release, systems.facts(box, updater.book, release)))
    if ruling.act is Act.INSTALL:
        systems.install(box, updater, found, tell)
    return ruling, updater.book.active


def _hash(signed: bytes) -> str:
    return hashlib.sha256(signed).hexdigest()


def _present(box: "Box") -> Present:
    now, standing = time.time_ns(), box.standing
    booted = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Present(standing.running, standing.blessed, booted, held(_of_models(box.config), box.config.update, now))


def _of_models(config: "Config") -> Mapping[str, Any]:
    """What the update service tells; nothing where nobody answers: such a box needs its update all the more."""

    async def told() -> Mapping[str, Any]:
        async with instance.session(config) as bus:
            state = (await instance.look(bus)).services.get("update")
        return state.detail if state is not None and state.online else {}

    try:
        return instance.play(told())
    except BusError:
        return {}


def _told(args: argparse.Namespace, ruling: Ruling) -> int:
    if args.json:
        from appliance.services.words import json_text

        print(json_text({"act": ruling.act.value, "reason": ruling.reason}))
    else:
        print(f"{ruling.reason.rstrip('.')}.", flush=True)
    return FORBIDDEN if ruling.act is Act.FORBIDDEN else 0
