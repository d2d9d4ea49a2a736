"""`millwright watch`: what happens, as it happens.

On a terminal a view that fills it; elsewhere (or with --plain) one line for each change that a person wants to be told
of and a summary every ten seconds; with --json the same as JSON lines, `type` being `change` or `summary`.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from appliance.cli import instance
from appliance.runtime.patience import within

if TYPE_CHECKING:
    from appliance.bus.port import Batch, Bus
    from appliance.config.schema import Config
    from appliance.services.picture import Change, Picture

REFRESH_S = 0.25
CALM_S = 1.0  # how often the ages and the clock move when nothing arrives
SUMMARY_S = 10.0


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("watch", help="see assets, scores, alarms and services as they change")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--plain", action="store_true", help="one line a change, also on a terminal")
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after so long")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config, _ = instance.configuration(args)
    try:
        instance.play(watch(config, choose(args), args.seconds))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 0  # Ctrl-C and SIGTERM are the ordinary ways to leave
    return 0


class View(Protocol):
    period_s: float

    def tell(self, changes: "list[Change]") -> None:
        """Changes, as they arrive."""

    def show(self, picture: "Picture", now: int, connected: bool) -> None:
        """The whole, every `period_s`."""

    def close(self, picture: "Picture", now: int) -> None:
        """The last word."""


def choose(args: argparse.Namespace) -> View:
    if args.json:
        return JsonLines()
    if args.plain or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Lines()
    return Screen()


async def watch(config: "Config", view: View, seconds: float | None) -> None:
    """Show the bus in `view`, for so many seconds or until cancelled."""
    from appliance.services.picture import Picture

    picture = Picture(time.time_ns())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel_this())
    await within(seconds, _showing(config, picture, view))


async def _showing(config: "Config", picture: "Picture", view: View) -> None:
    async with feeding(config, picture, view) as (bus, tasks):
        try:
            while True:
                ended, _ = await asyncio.wait(tasks, timeout=view.period_s, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()  # its error: the bus has no end
                view.show(picture, time.time_ns(), bus.connected)
        finally:
            view.close(picture, time.time_ns())


@asynccontextmanager
async def feeding(
    config: "Config", picture: "Picture", view: View
) -> "AsyncIterator[tuple[Bus, list[asyncio.Task[None]]]]":
    """A session, and the tasks through which its messages flow into the picture."""
    from appliance.services.picture import FILTERS, RETAINED_FILTERS

    async def feed(batches: "AsyncIterator[Batch]") -> None:
        async for batch in batches:
            if changes := picture.feed(batch, time.time_ns()):
                view.tell(changes)

    async with (
        instance.session(config) as bus,
        bus.subscribe(*RETAINED_FILTERS, qos=1) as kept,
        bus.subscribe(*FILTERS) as passing,
    ):
        tasks = [asyncio.create_task(feed(batches)) for batches in (kept, passing)]
        try:
            yield bus, tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _cancel_this() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None
    return task.cancel


class Screen:
    """The terminal's alternate screen, given back as it was."""

    period_s = REFRESH_S

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, transient=True)
        self._box = os.uname().nodename
        self._fresh = True
        self._drawn = 0.0

    def tell(self, changes: "list[Change]") -> None:
        self._fresh = True

    def show(self, picture: "Picture", now: int, connected: bool) -> None:
        from appliance.cli.screen import Frame, draw

        self._live.start()
        tick = time.monotonic()
        if not self._fresh and tick - self._drawn < CALM_S:
            return
        self._fresh, self._drawn = False, tick
        width, height = self._console.size
        self._live.update(draw(picture, Frame(width, height, now, self._box, connected)), refresh=True)

    def close(self, picture: "Picture", now: int) -> None:
        self._live.stop()


class Lines:
    """For a log, a pipe, a screen reader."""

    period_s = SUMMARY_S

    def tell(self, changes: "list[Change]") -> None:
        from appliance.services.words import moment

        for change in changes:
            print(f"{moment(change.at)} {change.kind} {change.subject}: {change.text}")
        sys.stdout.flush()

    def show(self, picture: "Picture", now: int, connected: bool) -> None:
        from appliance.services.words import moment, summary_text

        print(f"{moment(now)} summary: {summary_text(picture.summary(now), connected)}", flush=True)

    def close(self, picture: "Picture", now: int) -> None:
        self.show(picture, now, True)


class JsonLines:
    period_s = SUMMARY_S

    def tell(self, changes: "list[Change]") -> None:
        for change in changes:
            line = {"type": "change", "at": change.at, "kind": change.kind, "subject": change.subject}
            _print_json({**line, "text": change.text})

    def show(self, picture: "Picture", now: int, connected: bool) -> None:
        _print_json({"type": "summary", "connected": connected, **picture.summary(now)})

    def close(self, picture: "Picture", now: int) -> None:
        self.show(picture, now, True)


def _print_json(value: dict[str, Any]) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)
