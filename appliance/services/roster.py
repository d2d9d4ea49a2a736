"""Which models the detector has open, and which of them judges: the one that is chosen in the library.

running    judges; replaced between two batches when the library's name moves
beside     is compared with it: a candidate, or, after a change, the one before
previous   stays open: the way back takes no compiling

command/detect/prepare/<id>   {bundle}                      open it, beside what runs
command/detect/compare/<id>   {bundle, trusted, criteria}   it judges what the running one judges, and is compared
command/detect/drop/<id>      {}                            nothing is compared any more

Where nothing is beside, two models may judge, each its share of the assets: `contests.py`.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import msgspec

from appliance.config.updating import Contest as ContestSettings
from appliance.errors import InferenceError, ModelError
from appliance.events.schema import Command
from appliance.inference import comparison
from appliance.inference.choice import Choice, Runner
from appliance.inference.comparison import Criteria, Finding
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.shadow import Shadow
from appliance.services import commands
from appliance.services.contests import Contests

log = logging.getLogger(__name__)

NO_CONTEST = ContestSettings()
LOOK_S = 1.0  # between two looks at the library


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    bundle: str


class _Compare(msgspec.Struct, forbid_unknown_fields=True):
    bundle: str
    trusted: bool = False  # it ran before: what runs now is held against it
    criteria: Criteria = msgspec.field(default_factory=Criteria)


class Comparison:
    """Of the model that runs with one beside it."""

    def __init__(self, criteria: Criteria, running: Runner, beside: Runner, trusted: bool) -> None:
        self.criteria, self.beside, self.trusted = criteria, beside, trusted
        self._running = running
        self._seconds = beside.seconds
        running.begin_cost()
        beside.begin_cost()
        self.looks = 0  # besides those of the shadow's tally
        self.findings: list[Finding] = []  # the newest
        self.against = ""  # what spoke against the candidate once

    def share(self, period_s: float) -> float:
        """Of a processor, that comparing took since this was asked last."""
        spent, self._seconds = self.beside.seconds - self._seconds, self.beside.seconds
        return spent / period_s

    def weigh(self, shadow: Shadow) -> None:
        """A candidate's looks are held against the criteria all together; those of a model that runs, as they come:
        what was well for a day must not cover what is wrong now."""
        tally = shadow.begin_tally() if self.trusted else shadow.tally
        pair = (self.beside, self._running) if self.trusted else (self._running, self.beside)
        costs = pair[0].cost, pair[1].cost
        self.findings = comparison.findings(tally, self.criteria, costs, pair[1].memory_bytes)
        against = comparison.against(self.findings)
        if self.trusted:
            self.against = self.against or against
            self._running.begin_cost()
            self.beside.begin_cost()
            self.looks += tally.looks
        else:
            self.against = against


class Roster:
    """The detector's Computer is whatever runs."""

    def __init__(
        self, choice: Choice, running: Runner, trouble: str = "", contest: ContestSettings = NO_CONTEST
    ) -> None:
        self._choice, self._running, self._trouble = choice, running, trouble
        self.contests = Contests(contest, choice)
        self._beside: Runner | None = None
        self._previous: Runner | None = None
        self._comparison: Comparison | None = None
        self._refused = choice.chosen() if trouble else None  # was chosen, and cannot compute
        self._opening = asyncio.Lock()  # one model at a time is opened, changed to or let go of
        self._changes, self._gap_ms = 0, 0.0

    @property
    def running(self) -> Runner:
        return self._running

    @property
    def device(self) -> str:
        return self._running.device

    @property
    def fallback(self) -> str:
        return self._running.computer.fallback

    @property
    def alarm(self) -> str:
        return self._running.computer.alarm

    @property
    def slow(self) -> bool:
        judging = self._running, self._beside, self.contests.runner
        return any(runner.computer.slow for runner in judging if runner is not None)

    def close(self) -> None:
        for runner in self._held():
            runner.computer.close()

    def _held(self) -> set[Runner]:
        """All that are open."""
        held = {self._running, self._beside, self._previous, self.contests.runner}
        return {runner for runner in held if runner is not None}

    async def _close(self, runner: Runner | None) -> None:
        """One that was let go of, unless it is needed in another place."""
        if runner is not None and runner not in self._held():
            await asyncio.to_thread(runner.computer.close)

    def attach(self, detector: Detector, judging: asyncio.Lock) -> None:
        """`judging` is held while the detector is at work."""
        self._detector, self._judging = detector, judging

    async def run(self) -> None:
        """In step with the library, until cancelled."""
        seen: tuple[int, ...] | None = None
        while True:
            stamp = self._choice.stamp()
            if stamp != seen and not self._detector.succession.changing:
                await self._follow()
                seen = stamp
            await self._weigh()
            await self._contend()
            await asyncio.sleep(LOOK_S)

    def handlers(self) -> dict[str, commands.Handler]:
        return {
            "prepare": self._prepare,
            "compare": self._compare,
            "drop": self._drop,
            "contest": self.contests.report,
        }

    def describe(self) -> dict[str, Any]:
        running = self._running
        told: dict[str, Any] = {
            "bundle": running.bundle,
            "follows": self._choice.name,
            "changes": self._changes,
            "gap_ms": round(self._gap_ms, 2),
            "opening_s": round(running.opening_s, 3),
            "memory_mb": round(running.memory_bytes / (1 << 20), 1),
        }
        if self._previous is not None:
            told["previous"] = self._previous.bundle
        if self._beside is not None:
            told["prepared"] = self._beside.bundle
        if contest := self.contests.describe(self._detector.succession):
            told["contest"] = contest
        if self._trouble:
            told["choice_trouble"] = self._trouble
        if self._comparison is not None:
            told["comparison"] = self._compared(self._comparison)
        return told

    def _compared(self, compared: Comparison) -> dict[str, Any]:
        shadow = self._detector.succession.shadow
        looks = shadow.tally.looks if shadow is not None else 0
        return {
            "bundle": compared.beside.bundle,
            "trusted": compared.trusted,
            "looks": compared.looks + looks,
            "against": compared.against,
            "findings": [[one.criterion, round(one.value, 4), one.limit, one.holds] for one in compared.findings],
            "ration": shadow.ration if shadow is not None else 0,
            **self._detector.succession.describe(),
        }

    # ---- changing --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        try:
            folder = self._choice.chosen()
            if folder == self._refused:
                return
            if folder != self._running.folder:
                async with self._opening:
                    await self._change(await self._opened(folder))
            self._refused, self._trouble = None, ""
        except InferenceError as error:
            self._refused, self._trouble = (
                folder,
                f"{error.message}; {self._running.name} {self._running.version} stays",
            )
            log.error("%s", self._trouble)

    async def _change(self, successor: Runner) -> None:
        """Between two batches. What the broker sends meanwhile waits in the session."""
        former = self._running
        async with self._judging:
            began = time.perf_counter()
            known = self._detector.succession.promote(successor)
            self._running = successor
            self._gap_ms = 1e3 * (time.perf_counter() - began)
        self._changes += 1
        gone = {self._previous, self._beside} - {None, successor, former}
        self._previous, self._beside, compared = former, None, self._comparison
        watched = self._detector.succession.shadow is not None and compared is not None
        self._comparison = Comparison(compared.criteria, successor, former, not compared.trusted) if (
            watched and compared is not None) else None  # fmt: skip
        log.info(
            "%s %s judges from now on, %.1f ms; %s assets known", successor.name, successor.version, self._gap_ms, known
        )
        for runner in gone:
            await self._close(runner)

    async def _opened(self, folder: Path) -> Runner:
        for runner in self._held():
            if runner.folder == folder:
                return runner
        return await asyncio.to_thread(self._choice.open, folder)

    # ---- comparing -------------------------------------------------------------------------------------------------

    async def _prepare(self, command: Command) -> dict[str, Any]:
        bundle = commands.arguments(command, _Which).bundle
        async with self._opening:
            runner = await self._beside_of(bundle)
        return {
            "bundle": bundle,
            "model": f"{runner.name} {runner.version}",
            "device": runner.device,
            "opening_s": round(runner.opening_s, 3),
            "memory_mb": round(runner.memory_bytes / (1 << 20), 1),
        }

    async def _beside_of(self, bundle: str) -> Runner:
        """Open, and beside what runs; what was there before is let go of."""
        folder = self._choice.folder(bundle)
        if folder == self._running.folder:
            raise ModelError(f"{self._running.name} {self._running.version} runs already", "Name another bundle.")
        runner = await self._opened(folder)
        self._detector.succession.check(runner)
        if runner is not self._beside:
            await self._let_go()
            self._beside = runner
        return runner

    async def _compare(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Compare)
        async with self._opening:
            now = self._comparison
            if now is not None and now.beside.bundle == asked.bundle and now.trusted == asked.trusted:
                return {"bundle": asked.bundle}
            runner = await self._beside_of(asked.bundle)
            async with self._judging:
                self._detector.succession.begin(runner, asked.trusted)
                self._comparison = Comparison(asked.criteria, self._running, runner, asked.trusted)
        return {"bundle": asked.bundle}

    async def _drop(self, command: Command) -> dict[str, Any]:
        async with self._opening:
            await self._let_go()
        return {}

    async def _let_go(self) -> None:
        async with self._judging:
            self._detector.succession.drop()
            self._comparison = None
            beside, self._beside = self._beside, None
        await self._close(beside)

    async def _contend(self) -> None:
        """Where nothing is prepared or compared, and no change is under way."""
        if self._opening.locked() or self._beside is not None or self._comparison is not None:
            return
        if self._detector.succession.changing:
            return
        async with self._opening:
            before = self.contests.runner
            await self.contests.keep(self._detector.succession, self._judging, self._running, self._opened)
            if before is not self.contests.runner:
                await self._close(before)

    async def _weigh(self) -> None:
        compared, shadow = self._comparison, self._detector.succession.shadow
        if compared is None or shadow is None:
            return
        shadow.ration = comparison.ration(shadow.ration, compared.share(LOOK_S))
        if shadow.tally.looks >= compared.criteria.looks or shadow.tally.failures > compared.criteria.failures:
            compared.weigh(shadow)
