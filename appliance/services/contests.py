"""Keeps a contest of two models going, as `[contest]` declares it, whenever nothing else is beside the model
that runs: an installation comes first. Then the second model learns the assets again, and what was counted stays.

command/detect/contest/<id>   {}   what was counted so far, side by side, and what may be concluded

Another pair of models, another share or salt is another contest; the counts of the last one are gone then.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from appliance.config.updating import Contest as Settings
from appliance.errors import InferenceError, ModelError
from appliance.events.schema import Command, Verdict
from appliance.inference import contest
from appliance.inference.choice import Choice, Runner
from appliance.inference.contest import WHOLE, Contest, Pair
from appliance.inference.detector.contender import Contender
from appliance.inference.detector.succession import Succession
from appliance.services import commands

log = logging.getLogger(__name__)

Open = Callable[[Path], Awaitable[Runner]]  # a model that is open already, or opened now


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Contests:
    """`settings.model` empty: none is declared, and nothing is done."""

    def __init__(self, settings: Settings, choice: Choice) -> None:
        self._settings, self._choice = settings, choice
        self.runner: Runner | None = None  # the second model, open
        self._contest: Contest | None = None
        self._saved: dict[str, Any] = {}  # what was counted before this start
        self._trouble = ""
        self._seen: object = None  # the library, and what runs, when this was looked at last

    async def keep(self, succession: Succession, judging: asyncio.Lock, running: Runner, opened: Open) -> None:
        """Begin it where it should go on and does not. Called while nothing else is prepared or compared."""
        stands = self._choice.stamp(), running.bundle
        goes_on = isinstance(succession.shadow, Contender)
        if not self._settings.model or (stands == self._seen and (goes_on or self._trouble)):
            return
        self._seen = stands
        try:
            runner = await self._second(succession, running, opened)
        except InferenceError as error:
            self._trouble = error.message
            log.error("the contest does not go on: %s", error)
            return
        self._trouble, pair = "", self._pair(running, runner)
        if goes_on and self._contest is not None and self._contest.pair == pair:
            return
        self.runner, self._contest = runner, self._begun(pair)
        async with judging:
            succession.contend(runner, self._contest)
        log.info("%s %s judges its share of the assets as it learns them", runner.name, runner.version)

    async def report(self, command: Command) -> dict[str, Any]:
        """For a person. ModelError where no contest is declared or has begun."""
        commands.arguments(command, _Nothing)
        if self._contest is None:
            reason = self._trouble or "nothing was counted yet"
            raise ModelError(
                f"there is no contest: {reason if self._settings.model else 'none is declared'}",
                "Name a second model: model in [contest].",
            )
        found = await asyncio.to_thread(contest.report, self._contest.copy())
        return {**msgspec.to_builtins(found), "model": self._settings.model, "trouble": self._trouble}

    def said(self, asset: str, verdict: Verdict) -> None:
        """By a person, of an alarm."""
        if self._contest is not None:
            self._contest.said(asset, verdict is Verdict.FAULT)

    def describe(self, succession: Succession) -> dict[str, Any]:
        """Plain values for the service's state; empty without a contest."""
        if not self._settings.model:
            return {}
        shadow = succession.shadow
        told: dict[str, Any] = {"model": self._settings.model, "trouble": self._trouble}
        if isinstance(shadow, Contender):
            told |= {"bundle": shadow.contest.pair.b, "known": len(shadow.known), "deciding": len(shadow.deciding)}
        return told

    def snapshot(self) -> dict[str, Any]:
        return self._contest.snapshot() if self._contest is not None else self._saved

    def restore(self, data: object) -> None:
        """What `snapshot` gave; anything else is nothing."""
        self._saved = data if isinstance(data, dict) else {}

    async def _second(self, succession: Succession, running: Runner, opened: Open) -> Runner:
        folder = self._choice.library.find(self._settings.model).folder
        if folder == running.folder:
            raise ModelError(f"{self._settings.model} judges all assets already", "Name another in [contest].")
        runner = await opened(folder)
        succession.check(runner)
        return runner

    def _pair(self, running: Runner, runner: Runner) -> Pair:
        share = round(self._settings.share_percent * WHOLE / 100)
        return Pair(running.bundle, runner.bundle, share, self._settings.salt)

    def _begun(self, pair: Pair) -> Contest:
        """The one that goes on, or a new one."""
        if self._contest is not None and self._contest.pair == pair:
            return self._contest
        begun, saved = Contest(pair), self._saved
        self._saved = {}
        try:
            begun.restore(saved)
        except msgspec.ValidationError:
            if saved:
                log.warning("what was counted before cannot be read: the contest begins anew")
        return begun
