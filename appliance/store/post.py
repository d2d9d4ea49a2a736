"""The outbox on the event loop: its one thread commits in groups, and the loop never waits for a disk.

    await post.add(entries)                  # returns when they are on the disk
    parcels = await post.exchange(settled(delivered), want=1000)

A disk that refuses is tried again every second; whoever waits for a commit waits on, and nothing is acknowledged to the
bus meanwhile. A damaged file is set aside and a new one begun.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from appliance.errors import DamagedError, StoreError
from appliance.runtime.service import Clock
from appliance.store.outbox import NOTHING, Books, Confirmed, Outbox
from appliance.store.parcels import Entry, Lane, Parcel

log = logging.getLogger(__name__)

RETRY_S = 1.0


class Post:
    """`commit_s` between two commits when much comes; when it is quiet a commit follows at once."""

    def __init__(self, outbox: Outbox, clock: Clock, commit_s: float = 0.05) -> None:
        self.trouble = ""  # why nothing can be written now
        self.notice = ""  # what a person should know of the past
        self.outbox = outbox
        self.books: Books = outbox.books()
        self._clock, self._commit_s = clock, commit_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._entries: list[Entry] = []
        self._added: list[asyncio.Future[None]] = []
        self._confirmed, self._want = NOTHING, 0
        self._under_way: Mapping[Lane, int] = {}
        self._exchanged: asyncio.Future[list[Parcel]] | None = None
        self._wanted, self._arrived = asyncio.Event(), asyncio.Event()

    @property
    def uncommitted(self) -> int:
        return len(self._entries)

    def put(self, entries: Sequence[Entry]) -> "asyncio.Future[None]":
        """Done when they are on the disk."""
        done = asyncio.get_running_loop().create_future()
        self._entries.extend(entries)
        self._added.append(done)
        self._wanted.set()
        return done

    async def add(self, entries: Sequence[Entry]) -> None:
        await self.put(entries)

    async def exchange(
        self, confirmed: Confirmed, want: int, under_way: Mapping[Lane, int] | None = None
    ) -> list[Parcel]:
        """Settle what was delivered; what leaves next, after what is under way. One at a time."""
        self._confirmed, self._want, self._under_way = confirmed, want, under_way or {}
        self._exchanged = asyncio.get_running_loop().create_future()
        self._wanted.set()
        return await self._exchanged

    def settle(self, confirmed: Confirmed) -> None:
        """As `exchange`, with the next commit, by one who does not wait."""
        if self._exchanged is None:
            self._confirmed = confirmed
            self._wanted.set()

    async def arrival(self) -> None:
        """Until something has come in since this was last asked."""
        await self._arrived.wait()
        self._arrived.clear()

    async def open(self) -> None:
        """Read what was left behind. A disk that refuses is found out again by `run`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._job, [], NOTHING, 0, {})
        self.books = self.outbox.books()

    async def pause(self, is_paused: bool) -> None:
        """StoreError."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.outbox.pause, is_paused)

    async def bytes_used(self) -> int:
        """StoreError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.outbox.bytes_used)

    async def run(self) -> None:
        """Until cancelled; then commits what has come, within one more job."""
        loop = asyncio.get_running_loop()
        last = 0.0
        try:
            while True:
                await self._wanted.wait()
                if self._exchanged is None and (wait_s := last + self._commit_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if not await self._turn():
                    await asyncio.sleep(RETRY_S)
                last = loop.time()
        finally:
            await self._turn()
            await loop.run_in_executor(self._thread, self.outbox.close)
            self._thread.shutdown()

    async def _turn(self) -> bool:
        """One transaction for all who wait; whether it came about."""
        self._wanted.clear()
        entries, added, self._entries, self._added = self._entries, self._added, [], []
        confirmed, want, asked = self._confirmed, self._want, self._exchanged
        self._confirmed, self._want, self._exchanged = NOTHING, 0, None
        job = asyncio.get_running_loop().run_in_executor(
            self._thread, self._job, entries, confirmed, want, self._under_way
        )
        found = await asyncio.shield(job)
        if found is None:
            self._entries[:0], self._added[:0] = entries, added
            if self._exchanged is None:
                self._want, self._exchanged = want, asked
                self._confirmed = confirmed if self._confirmed is NOTHING else self._confirmed
            self._wanted.set()
            return False
        self.books = self.outbox.books()
        for done in added:
            if not done.done():
                done.set_result(None)
        if asked is not None and not asked.done():
            asked.set_result(found)
        if entries:
            self._arrived.set()
        return True

    def _job(
        self, entries: Sequence[Entry], confirmed: Confirmed, want: int, under_way: Mapping[Lane, int]
    ) -> list[Parcel] | None:
        try:
            try:
                found = self.outbox.turn(entries, confirmed, want, under_way)
            except DamagedError as error:
                self._set_aside(error)
                found = self.outbox.turn(entries, NOTHING, want)
        except StoreError as error:
            if error.message != self.trouble:
                log.error("what is to leave cannot be written down: %s", error)
            self.trouble = error.message
            return None
        self.trouble = ""
        return found

    def _set_aside(self, error: DamagedError) -> None:
        aside = self.outbox.set_aside(self._clock())
        self.notice = f"{error.message}; it was set aside as {aside.name} and a new one begun"
        log.error("%s", self.notice)
