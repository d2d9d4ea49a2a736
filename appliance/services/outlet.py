"""One destination: what leaves for it is taken in, waits in its outbox, and goes over its line while that holds.

Taking in never waits for the line. The line is opened, worked on, and opened again, later and later; what was not
confirmed on one line leaves by the next.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any

from appliance.bus.port import Message
from appliance.channels.leaving.gate import Gate
from appliance.channels.leaving.pace import Batches, Patience, Politeness
from appliance.channels.leaving.terms import Terms
from appliance.channels.port import Asking, Channel, Origin, Pingable, Request
from appliance.config.secrets import Reveal
from appliance.errors import ChannelError, MillwrightError, RefusedParcelError
from appliance.masking.masker import Masker
from appliance.masking.tokens import Tokens
from appliance.runtime.patience import within
from appliance.runtime.service import Clock
from appliance.store.outbox import NOTHING, Confirmed, settled
from appliance.store.parcels import NAMES, SINGLE, Lane, Parcel
from appliance.store.post import Post

log = logging.getLogger(__name__)

KEY_RETRY_S = 10.0
BREATH_S = 0.02  # between batches at a polite rate


Flying = tuple[Sequence[Parcel], "asyncio.Future[Confirmed]"]


class Standing(StrEnum):
    """How the line is. Everything but OPEN is offline."""

    OPENING = "opening"
    OPEN = "open"
    SILENT = "silent"  # open, but the destination does not answer
    WAITING = "waiting"  # it failed, and is opened again at `next_attempt`
    PAUSED = "paused"


class Outlet:
    """`changed` is called when the line's standing changes, `perform` with what people at the destination ask for."""

    def __init__(
        self,
        name: str,
        kind: str,
        channel: Channel,
        gate: Gate,
        post: Post,
        terms: Terms,
        clock: Clock,
        changed: Callable[[], None] = lambda: None,
        perform: Callable[[Request], Awaitable[None]] | None = None,
        reveal: Reveal | None = None,
    ) -> None:
        self.name, self.kind, self.channel, self.gate, self.post = name, kind, channel, gate, post
        self.standing, self.error, self.since, self.next_attempt = Standing.OPENING, "", clock(), 0
        self.changed, self.perform, self._reveal = changed, perform, reveal
        self._terms, self._clock = terms, clock
        self._batches, self._patience = Batches(), Patience()
        self._politeness = Politeness(terms.catch_up_per_s)
        self._flowing, self._turned = asyncio.Event(), asyncio.Event()
        self._alone = False  # one parcel at a time, to find the one that is refused

    def take(self, batch: Sequence[Message], now: int) -> "asyncio.Future[None] | None":
        """Done when what leaves of it is on the disk; None where nothing does."""
        entries = self.gate.entries(batch, now)
        return self.post.put(entries) if entries else None

    async def run(self) -> None:
        await self.post.open()
        if not self.post.outbox.is_paused:
            self._flowing.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.post.run(), name=f"forward {self.name} commits")
            group.create_task(self._keep_line(), name=f"forward {self.name} line")
            group.create_task(self._fetch_key(), name=f"forward {self.name} key")

    async def pause(self, is_paused: bool) -> None:
        """What comes in waits meanwhile. StoreError."""
        await self.post.pause(is_paused)
        if is_paused:
            self._flowing.clear()
        else:
            self._flowing.set()
            self._patience.worked()
        self._turned.set()

    def describe(self) -> dict[str, Any]:
        books = self.post.books
        return {
            "channel": self.kind,
            "line": self.standing.value,
            "since": self.since,
            "error": self.error,
            "next_attempt": self.next_attempt,
            "received": books.received + self.post.uncommitted,
            "sent": books.sent,
            "queued": {NAMES[lane]: count for lane, count in books.queued.items() if count},
            "uncommitted": self.post.uncommitted,
            "dropped": dict(books.dropped),
            "budget_mb": self._terms.budget_mb,
            "masked": dict(self.gate.masker.count),
            "trouble": self.post.trouble,
            "notice": self.post.notice,
        }

    async def _fetch_key(self) -> None:
        """From the vault, which may open later than we do."""
        name = self._terms.token_key
        while name is not None and self._reveal is not None:
            try:
                key = await self._reveal(name)
                self.gate.mask_by(Masker(self._terms.masking, Tokens(key)))
                return
            except (ChannelError, ValueError) as error:
                log.warning("%s: tokens cannot be made, what should become one is masked: %s", self.name, error)
            await asyncio.sleep(KEY_RETRY_S)

    # The line

    async def _keep_line(self) -> None:
        while True:
            self._turned.clear()
            if not self._flowing.is_set():
                self._stand(Standing.PAUSED)
                await self._flowing.wait()
            self._stand(Standing.OPENING, self.error)
            try:
                async with self.channel:
                    self._stand(Standing.OPEN)
                    log.info("the line to %s is open", self.name)
                    await self._first_end(self._work(), self._turned.wait(), *self._asked())
            except ChannelError as error:
                await self._wait(error)

    async def _wait(self, error: ChannelError) -> None:
        wait_s = self._patience.failed(random.random())
        if self.error != str(error):
            log.warning("%s: %s", self.name, error)
        self.next_attempt = self._clock() + round(wait_s * 1e9)
        self._stand(Standing.WAITING, str(error))
        with suppress(TimeoutError):
            await self._first_end(asyncio.sleep(wait_s), self._turned.wait())

    def _stand(self, standing: Standing, error: str = "") -> None:
        if standing is not Standing.WAITING:
            self.next_attempt = 0
        if (standing, error) != (self.standing, self.error):
            if standing is not self.standing:
                self.since = self._clock()
            self.standing, self.error = standing, error
            self.changed()

    def _asked(self) -> list[Any]:
        return [self._hear(self.channel)] if isinstance(self.channel, Asking) and self.perform else []

    async def _hear(self, channel: Asking) -> None:
        async for request in channel.requests():
            assert self.perform is not None
            try:
                await self.perform(request)
            except MillwrightError as error:
                log.warning("%s asked for '%s %s': %s", self.name, request.service, request.verb, error)
        await asyncio.Event().wait()

    async def _first_end(self, *work: Any) -> None:
        """Until one of them ends; what it raised is raised."""
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _work(self) -> None:
        """Batch after batch. ChannelError when the line is lost."""
        lost: asyncio.Future[Any] = asyncio.ensure_future(self.channel.lost())
        confirmed, flight = NOTHING, deque[Flying]()
        try:
            while True:
                want = self._room()
                parcels = await self.post.exchange(confirmed, want, _ends(flight))
                confirmed = NOTHING
                if parcels:
                    some = parcels[:1] if self._alone else parcels
                    flight.append((some, asyncio.ensure_future(self._sent(some, lost))))
                if flight and (not parcels or len(flight) >= self.channel.depth):
                    confirmed = await flight[0][1]
                    flight.popleft()
                    await self._rest()
                elif not parcels and want:
                    await self._arrival(lost)
                elif not parcels:
                    await asyncio.sleep(BREATH_S)
        finally:
            lost.cancel()
            await _ended(flight)
            if flight and not flight[0][1].cancelled() and flight[0][1].exception() is None:
                confirmed = flight[0][1].result()
            if confirmed.marks:  # the end came between the destination's word and ours
                self.post.settle(confirmed)

    def _room(self) -> int:
        books = self.post.books
        urgent = any(books.queued[lane] for lane in SINGLE)
        flow = books.waiting - sum(books.queued[lane] for lane in SINGLE)
        room = self._politeness.room(asyncio.get_running_loop().time(), flow, books.received)
        return min(self._batches.size, max(room, int(urgent)))

    async def _rest(self) -> None:
        """For a destination that wants to be told now and then; an alarm is told at once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.channel.rest_s
        while (left := until - loop.time()) > 0 and not self.post.books.queued[Lane.ALARM]:
            await within(left, self.post.arrival())

    async def _arrival(self, lost: "asyncio.Future[Any]") -> None:
        """Until something has come in. Meanwhile the line is asked whether it holds."""
        coming: asyncio.Future[Any] = asyncio.ensure_future(self.post.arrival())
        probe_s = self._terms.probe_s or None
        try:
            while not (await asyncio.wait([coming, lost], timeout=probe_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                if isinstance(self.channel, Pingable):
                    await self._ask_line(self.channel.ping(), coming, lost)
        finally:
            coming.cancel()
        if lost.done():
            raise ChannelError(f"the line was lost: {lost.result()}", "It is opened again by itself.")

    async def _ask_line(self, ping: Any, *others: "asyncio.Future[Any]") -> None:
        """Until it has answered, or there is something else to do. ChannelError where it is silent for too long."""
        asking = asyncio.ensure_future(ping)
        try:
            await self._answered([asking, *others], lambda: 0)
            if asking.done():
                asking.result()
                self._stand(Standing.OPEN)
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    async def _sent(self, parcels: Sequence[Parcel], lost: "asyncio.Future[Any]") -> Confirmed:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._deliver(parcels, lost)
        except RefusedParcelError as error:
            log.warning("%s: %s", self.name, error)
            if len(parcels) > 1:
                self._alone = True
                return NOTHING
            self._alone = False
            return settled(parcels)._replace(refused=True)
        except ChannelError:
            self._batches.failed()
            raise
        self._stand(Standing.OPEN)
        self._patience.worked()
        self._batches.delivered(len(parcels), loop.time() - began)
        self._politeness.took(sum(parcel.lane not in SINGLE for parcel in parcels))
        return settled(parcels)

    async def _answered(self, work: Sequence["asyncio.Future[Any]"], progress: Callable[[], int]) -> None:
        """Until one of them ends. The line is shown as silent meanwhile, where nothing is answered for `answer_ms`."""
        loop = asyncio.get_running_loop()
        answered, since, patience_s = progress(), loop.time(), self._terms.answer_ms / 1000
        while not (await asyncio.wait(work, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED))[0]:
            if progress() != answered:
                answered, since = progress(), loop.time()
                self._stand(Standing.OPEN)
            elif loop.time() - since > self._terms.give_up_s:
                raise ChannelError(f"no answer for {self._terms.give_up_s:g} s", "The line is opened anew.")
            else:
                self._stand(Standing.SILENT, f"no answer for {self._terms.answer_ms} ms")

    async def _deliver(self, parcels: Sequence[Parcel], lost: "asyncio.Future[Any]") -> None:
        """ChannelError where the line is lost, or nothing is answered for too long."""
        work = asyncio.ensure_future(self.channel.deliver(Origin(self.post.outbox.identity), parcels))
        try:
            await self._answered([work, lost], lambda: self.channel.progress)
            if not work.done():
                raise ChannelError(f"the line was lost: {lost.result()}", "It is opened again by itself.")
            work.result()
        finally:
            work.cancel()
            await asyncio.wait([work])


async def _ended(flight: Iterable[Flying]) -> None:
    """All of them are over; what they say of a line that is lost was heard from the first."""
    works = [work for _, work in flight]
    for work in works:
        work.cancel()
    if works:
        await asyncio.wait(works)
    for work in works:
        if not work.cancelled():
            work.exception()


def _ends(flight: Iterable[Flying]) -> dict[Lane, int]:
    """The last numbers that are under way."""
    return {parcel.lane: parcel.seq for parcels, _ in flight for parcel in parcels}
