"""Runs services as named tasks of one TaskGroup, tells systemd how they are, and stops them within two seconds.

They are started one after another, each when the one before it is ready: what a service says first is heard by all that
stand before it. They are stopped the other way round: what a service says at its end still finds the broker.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence

from appliance.errors import MillwrightError
from appliance.runtime.notify import Notifier
from appliance.runtime.service import Service

log = logging.getLogger(__name__)

STOP_S = 2.0
WATCHDOG_SHARE = 3  # pings per watchdog period


class Heart:
    """The Pulse of one service."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_ready = asyncio.Event()
        self.last_beat = time.monotonic()

    def ready(self) -> None:
        self.is_ready.set()
        self.beat()

    def beat(self) -> None:
        self.last_beat = time.monotonic()

    def alive(self, within_s: float, now: float) -> bool:
        return now - self.last_beat <= within_s


async def run(services: Sequence[Service], stop: asyncio.Event, notifier: Notifier | None = None) -> None:
    """Until `stop` is set or a signal arrives. A service that fails stops the others and its error is raised."""
    notifier = notifier or Notifier()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as group:
            await _run_in(group, services, stop, notifier)
    except BaseExceptionGroup as errors:
        # Not `except*`: before Python 3.11.4 it wraps what is raised in it into a group again.
        known, others = errors.split(MillwrightError)
        if known is None or others is not None:
            raise
        raise _first(known) from None


async def _run_in(
    group: asyncio.TaskGroup, services: Sequence[Service], stop: asyncio.Event, notifier: Notifier
) -> None:
    hearts = [Heart(service.name) for service in services]
    tasks: list[asyncio.Task[None]] = []
    for service, heart in zip(services, hearts, strict=True):
        tasks.append(group.create_task(service.run(heart), name=service.name))
        await _first_of(heart.is_ready, stop)
        if stop.is_set():
            break
    telling = group.create_task(_tell(hearts, notifier), name="notify")
    await stop.wait()
    notifier.send("STOPPING=1")
    telling.cancel()
    await _stop(tasks)


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _tell(hearts: Sequence[Heart], notifier: Notifier) -> None:
    for heart in hearts:
        await heart.is_ready.wait()
    notifier.send("READY=1", f"STATUS=running: {', '.join(heart.name for heart in hearts)}")
    while notifier.watchdog_s:
        now = time.monotonic()
        silent = [heart.name for heart in hearts if not heart.alive(notifier.watchdog_s, now)]
        notifier.send(f"STATUS=no sign of life from {', '.join(silent)}" if silent else "WATCHDOG=1")
        await asyncio.sleep(notifier.watchdog_s / WATCHDOG_SHARE)


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    deadline = time.monotonic() + STOP_S
    for task in reversed(tasks):
        task.cancel()
        _, late = await asyncio.wait([task], timeout=max(0.0, deadline - time.monotonic()))
        if late:
            # Everything that matters is durable at every moment, so an abrupt end costs nothing but this line.
            log.error("%s did not stop within %s s", task.get_name(), STOP_S)
            os._exit(1)


def _first(errors: BaseExceptionGroup[MillwrightError]) -> MillwrightError:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MillwrightError)
    return found
