"""Commits readings in groups from a thread of its own: the event loop never waits for a disk.

The thread does one job at a time: commit what waits, bring it to the disk once a second, keep order. The loop alone
touches `Pending` and the ledger; it settles what a job has done when the job is over.

A database that refuses is tried again every second while readings wait, up to the limit of `Pending`. One that is
damaged is set aside and a new one begun.
"""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from appliance.errors import DamagedError, StoreError
from appliance.events.ledger import Ledger
from appliance.events.schema import Block, Reading
from appliance.runtime.patience import within
from appliance.runtime.service import Clock
from appliance.store.history import History
from appliance.store.pending import Load, Pending

log = logging.getLogger(__name__)

RETRY_S = 1.0
SYNC_S = 1.0  # a power cut loses at most this much and one commit's interval
IDLE_S = 60.0  # how often order is kept when nothing arrives
_STEPS = 16  # of keeping order after one commit


class Writer:
    """`ledger` gets `processed` for what was committed and `dropped` for what never will be."""

    def __init__(self, history: History, ledger: Ledger, clock: Clock, commit_s: float, max_assets: int) -> None:
        self.trouble = ""  # why nothing can be written now
        self.notice = ""  # what a person should know of the past
        self.pending = Pending(max_assets, history.retention)
        self._history, self._ledger, self._clock, self._commit_s = history, ledger, clock, commit_s
        self._wanted = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._loads: deque[Load] = deque()  # to be committed; filled by the loop, emptied by the thread
        self._done: deque[Load] = deque()  # committed; the other way round
        self._found_trouble = ""  # by the thread
        self._known: list[str] = []  # assets that the database has; told by the thread when it opens it
        self._unsynced = self._untidy = self._stopping = False
        self._synced_at = 0.0  # monotonic, s

    def add(self, asset: str, reading: Reading, now: int) -> None:
        """EventError where it is not taken: see `Pending.add`."""
        self.pending.add(asset, reading, now)
        self._wanted.set()

    def add_block(self, asset: str, block: Block) -> None:
        self.pending.add_block(asset, block)
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled; then commits what it can, within one more job."""
        try:
            while True:
                await self._work()
                await self._wait()
        finally:
            await self._stop()

    async def _wait(self) -> None:
        if self.trouble:
            await asyncio.sleep(RETRY_S)
            return
        seconds = 0.0 if self._untidy else SYNC_S if self._unsynced else IDLE_S
        if await within(seconds, self._wanted.wait()):
            await asyncio.sleep(self._commit_s)

    async def _work(self) -> None:
        self._wanted.clear()
        self._loads.extend(self.pending.take(self._history.commit_bytes))
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._job)
        finally:
            self._settle()

    async def _stop(self) -> None:
        self._stopping = True
        await self._work()
        for load in self._loads:
            self.pending.settle(load)
            self._ledger.drop("store-unavailable", self.trouble, load.commit.rows)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._history.close)
        self._thread.shutdown()

    def _settle(self) -> None:
        while self._done:
            load = self._done.popleft()
            self.pending.settle(load)
            self._ledger.processed += load.commit.rows
        self.trouble = self._found_trouble
        self.pending.unavailable = bool(self.trouble)
        self.pending.know(self._known)
        self._known = []
        self.pending.forget(self._history.take_forgotten())

    # In the thread

    def _job(self) -> None:
        try:
            self._open()
            self._commit()
            self._sync()
            self._tidy()
            self._found_trouble = ""
        except DamagedError as error:
            self._set_aside(error)
        except StoreError as error:
            self._report(error)

    def _open(self) -> None:
        if not self._history.is_open:
            self._history.open()
            self._known = self._history.assets()

    def _commit(self) -> None:
        while self._loads:
            self._history.append(self._loads[0].commit, self._clock())
            self._done.append(self._loads.popleft())
            self._unsynced = True

    def _sync(self) -> None:
        if self._unsynced and (self._stopping or time.monotonic() - self._synced_at >= SYNC_S):
            self._history.sync()
            self._synced_at, self._unsynced = time.monotonic(), False

    def _tidy(self) -> None:
        self._untidy = True
        for _ in range(_STEPS):
            if self._stopping:
                return
            if not self._history.tidy(self._clock()):
                self._untidy = False
                return

    def _set_aside(self, error: DamagedError) -> None:
        self._found_trouble = error.message
        try:
            aside = self._history.set_aside(self._clock())
        except StoreError as refused:
            self._report(refused)
            return
        self.notice = f"{error.message}; it was set aside as {aside.name} and a new one begun"
        log.error("%s", self.notice)

    def _report(self, error: StoreError) -> None:
        if error.message != self._found_trouble:
            log.error("readings cannot be recorded: %s", error)
        self._found_trouble = error.message
        self._history.close()
