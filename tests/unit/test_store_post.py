"""The outbox on the event loop: what waits for a commit waits through a full disk and a damaged file."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.store import post as posts
from appliance.store.outbox import NOTHING, Outbox, settled
from appliance.store.outbox_stock import Stock
from appliance.store.parcels import Entry, Lane
from appliance.store.post import Post

PATIENCE_S = 20.0


def entries(count: int) -> list[Entry]:
    return [Entry(Lane.READING, "reading/a", str(number).encode().rjust(500)) for number in range(count)]


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Post]:
    post = Post(Outbox(path, 1 << 30), time.time_ns, commit_s=0.0)
    await post.open()
    task = asyncio.create_task(post.run())
    try:
        yield post
    finally:
        task.cancel()
        await asyncio.wait([task])


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scenario()

    asyncio.run(bounded())


def test_what_is_added_is_there_and_leaves_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path / "outbox.sqlite") as post:
            await asyncio.gather(*(post.add(entries(10)) for _ in range(5)))
            await post.arrival()
            first = await post.exchange(NOTHING, 30)
            rest = await post.exchange(settled(first), 100)
            assert [one.seq for one in first + rest] == list(range(1, 51))
            assert await post.exchange(settled(rest), 100) == []
            assert (post.books.sent, post.books.waiting) == (50, 0)

    play(scenario)


def test_a_full_disk_is_told_and_what_came_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "RETRY_S", 0.0)

    async def scenario() -> None:
        async with running(tmp_path / "outbox.sqlite") as post:
            await post.add(entries(1))
            _fill(post, full=True)
            adding = asyncio.create_task(post.add(entries(200)))
            asking = asyncio.create_task(post.exchange(NOTHING, 1000))
            while not post.trouble:  # noqa: ASYNC110 - it is told in passing
                await asyncio.sleep(0)
            assert not adding.done()
            assert post.uncommitted == 0 or post.uncommitted == 200
            _fill(post, full=False)
            await adding
            assert len(await asking) in (1, 201)
            assert post.trouble == ""
            assert post.books.received == 201

    play(scenario)


def _fill(post: Post, *, full: bool) -> None:
    """SQLite takes no more pages than it has, or as many as it likes; also after it opens its file again."""
    plain = Outbox._open

    def opened(box: Outbox) -> Stock:
        stock = plain(box)
        stock.execute("PRAGMA max_page_count = 1")
        return stock

    if full:
        post.outbox._open = opened.__get__(post.outbox)  # type: ignore[method-assign]
        post.outbox._opened().execute("PRAGMA max_page_count = 1")
    else:
        del post.outbox._open
        post.outbox.close()


def test_a_damaged_file_is_set_aside_and_work_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"

    async def scenario() -> None:
        path.write_bytes(b"no database at all" * 500)
        async with running(path) as post:
            await post.add(entries(3))
            assert "set aside" in post.notice
            assert len(await post.exchange(NOTHING, 10)) == 3
        assert len(list(tmp_path.glob("*.damaged-*"))) == 1

    play(scenario)


def test_pausing_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"

    async def scenario() -> None:
        async with running(path) as post:
            await post.pause(True)
        async with running(path) as post:
            assert post.outbox.is_paused
            await post.pause(False)
            assert await post.bytes_used() > 0
        async with running(path) as post:
            assert not post.outbox.is_paused

    play(scenario)
