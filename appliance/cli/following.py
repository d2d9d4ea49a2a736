"""How an installation goes, as it goes: bars on a terminal, lines elsewhere, JSON where that is asked for.

It is followed on the bus. Whoever stops following stops nothing.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from appliance.bus.port import Batch, Bus, Message
from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState, State
from appliance.services.words import moment, printable, span

if TYPE_CHECKING:
    from rich.progress import TaskID

SAMPLE_S = 10.0  # over which a rate is taken
LINE_S = 5.0  # between two lines about the same step
PROMOTED = "promoted"


@dataclass(frozen=True)
class Measure:
    """How far a step is: `done` of `total`, in `unit`s ("bytes", "looks", "s")."""

    done: float
    total: float
    unit: str


class Pace:
    """Of a step that goes on: how much a second, over the last seconds."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def add(self, done: float, now: float) -> None:
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > SAMPLE_S:
            self._samples.pop(0)

    @property
    def rate(self) -> float:
        """Zero where it is not known yet."""
        if len(self._samples) < 2:
            return 0.0
        (began, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - began) if now > began else 0.0

    def left_s(self, measure: Measure) -> float | None:
        return (measure.total - measure.done) / self.rate if self.rate > 0 else None


class View(Protocol):
    """Where it is shown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def step(self, one: dict[str, Any]) -> None:
        """It has come to another step, or waits for another reason."""

    def measured(self, one: dict[str, Any], measure: Measure) -> None: ...


class Followed:
    """What was heard of one installation. Pure: bytes and times are passed in."""

    def __init__(self, one: dict[str, Any], looks: int, shadow_s: float) -> None:
        self.one, self._looks, self._shadow_s = one, looks, shadow_s
        self.progress: dict[str, Any] = {}
        self._comparison: dict[str, Any] = {}

    @property
    def step(self) -> str:
        return str(self.one["step"])

    def hear(self, message: Message, now: int) -> None:
        try:
            kind, path = topics.parse(message.topic)
            event = codec.decode(kind, message.payload, now) if message.payload else None
        except EventError:
            return
        if isinstance(event, Command) and event.result.get("id") == self.one["id"]:
            self.one = {**event.result, "state": event.state.value}
        elif isinstance(event, State) and path == "update":
            self.progress = event.detail.get("progress", {})
        elif isinstance(event, State) and path == "detect":
            choice = event.detail.get("choice", {})
            self._comparison = choice.get("comparison", {}) if isinstance(choice, dict) else {}

    @property
    def ended(self) -> bool:
        return self.one.get("state") in (CommandState.SUCCESSFUL.value, CommandState.FAILED.value)

    def measure(self, now: int) -> Measure | None:
        """Of the present step, where it can be measured."""
        if self.step in ("downloading", "reconstructing") and self.progress.get("of"):
            return Measure(self.progress["bytes"], self.progress["of"], "bytes")
        if self.step != "shadow":
            return None
        gone_s = (now - self.one["trail"][-1][1]) / 1e9
        looks = self._comparison.get("looks", 0) if self._comparison.get("bundle") == self.one["bundle"] else 0
        if gone_s / max(self._shadow_s, 1e-9) < looks / self._looks:
            return Measure(min(gone_s, self._shadow_s), self._shadow_s, "s")
        return Measure(min(looks, self._looks), self._looks, "looks")


async def follow(bus: Bus, followed: Followed, view: View, until: Callable[[Followed], bool]) -> None:
    """Show it until it has ended, or `until` says that it is enough."""
    heard = topics.commands_of("update/install"), topics.state("update"), topics.state("detect")
    with view:
        view.step(followed.one)
        async with bus.subscribe(*heard, qos=1) as batches:
            told = _key(followed.one)
            async for batch in _batches(batches):
                for message in batch:
                    followed.hear(message, time.time_ns())
                if _key(followed.one) != told:
                    told = _key(followed.one)
                    view.step(followed.one)
                if (measure := followed.measure(time.time_ns())) is not None:
                    view.measured(followed.one, measure)
                if followed.ended or until(followed):
                    return


async def _batches(batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
    """And an empty one a second, so that times are shown."""
    waiting = asyncio.ensure_future(anext(batches))
    try:
        while True:
            done, _ = await asyncio.wait([waiting], timeout=1.0)
            if not done:
                yield []
                continue
            yield waiting.result()
            waiting = asyncio.ensure_future(anext(batches))
    finally:
        waiting.cancel()


def _key(one: dict[str, Any]) -> tuple[Any, ...]:
    return one["step"], one["reason"], one["returning"]


# ---- where it is shown ----------------------------------------------------------------------------------------------


def view(as_json: bool) -> View:
    if as_json:
        return JsonLines()
    return Bars() if sys.stdout.isatty() else Lines()


class Lines:
    """For logs and pipes."""

    def __init__(self) -> None:
        self._pace, self._said_at, self._step = Pace(), 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, one: dict[str, Any]) -> None:
        if one["step"] != self._step:
            self._step, self._pace, self._said_at = one["step"], Pace(), time.monotonic()
        print(f"{moment(one['trail'][-1][1])}  {stepped(one)}", flush=True)

    def measured(self, one: dict[str, Any], measure: Measure) -> None:
        now = time.monotonic()
        self._pace.add(measure.done, now)
        if now - self._said_at >= LINE_S:
            self._said_at = now
            print(f"  {far(measure, self._pace)}", flush=True)


class JsonLines:
    """One object a line: each step, and how far it is."""

    def __init__(self) -> None:
        self._pace, self._last = Pace(), Measure(-1, -1, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, one: dict[str, Any]) -> None:
        self._pace = Pace()
        _print_json(one)

    def measured(self, one: dict[str, Any], measure: Measure) -> None:
        self._pace.add(measure.done, time.monotonic())
        if measure == self._last:
            return
        self._last = measure
        told = {"id": one["id"], "step": one["step"], "done": measure.done, "of": measure.total, "unit": measure.unit}
        left_s = self._pace.left_s(measure)
        _print_json(told | {"rate": round(self._pace.rate, 3), "left_s": None if left_s is None else round(left_s, 1)})


class Bars:
    """On a terminal: a line of each step that is done, a bar of the one that is under way."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = SpinnerColumn(), TextColumn("{task.description:<15}"), BarColumn(30), TextColumn("{task.fields[far]}")
        self._progress: Progress = Progress(*columns)
        self._task: TaskID | None = None
        self._pace, self._step = Pace(), ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:  # it goes on without us
            self._progress.remove_task(self._task)
        self._progress.stop()

    def step(self, one: dict[str, Any]) -> None:
        if one["step"] != self._step:
            self._end()
            self._pace, self._step = Pace(), one["step"]
            self._task = self._progress.add_task(self._step, total=None, far="")
        if self._task is not None:
            self._progress.update(self._task, far=printable(one["reason"]))

    def measured(self, one: dict[str, Any], measure: Measure) -> None:
        self._pace.add(measure.done, time.monotonic())
        if self._task is not None:
            self._progress.update(self._task, completed=measure.done, total=measure.total, far=far(measure, self._pace))

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.console.print(f"  {self._step}", highlight=False)
            self._task = None


# ---- in words -------------------------------------------------------------------------------------------------------


def stepped(one: dict[str, Any]) -> str:
    step = "going back" if one["returning"] and one["step"] == PROMOTED else one["step"]
    return f"{step}: {printable(one['reason'])}" if one["reason"] else str(step)


def far(measure: Measure, pace: Pace) -> str:
    """How far, how fast, how long still."""
    from appliance.cli.measuring import size

    left_s = pace.left_s(measure)
    left = f", {span(max(left_s, 1.0))} left" if left_s is not None else ""
    if measure.unit == "bytes":
        rate = f", {size(round(pace.rate))}/s" if pace.rate else ""
        return f"{size(round(measure.done))} of {size(round(measure.total))}{rate}{left}"
    if measure.unit == "s":
        return f"compared for {span(measure.done)} of {span(measure.total)}"
    rate = f", {pace.rate:.1f} a second" if pace.rate else ""
    return f"{measure.done:.0f} of {measure.total:.0f} looks{rate}{left}"


def _print_json(value: dict[str, Any]) -> None:
    import json

    print(json.dumps(value), flush=True)
