"""Nothing is lost and nothing comes twice, though sender, broker and receiver are killed while events pour in.

`MILLWRIGHT_OUTAGE_MINUTES=30` plays the whole half hour of 2,000 events a second; it takes some minutes.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from tests.faults.outage import BROKER, KILLS, RATE, RECEIVER, SENDER, Site

MINUTES = float(os.environ.get("MILLWRIGHT_OUTAGE_MINUTES", "0.5"))
PATIENCE_S = 150 + 60 * MINUTES


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mw-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.timeout(PATIENCE_S + 30)
def test_nothing_is_lost_or_doubled_and_alarms_come_first(folder: Path) -> None:
    assert [KILLS.count(who) for who in (SENDER, BROKER, RECEIVER)] == [2, 2, 2]

    async def bounded() -> None:
        site = Site(folder, round(MINUTES * 60 * RATE))
        async with asyncio.timeout(PATIENCE_S):
            report = await site.play()
        print(report)
        assert (report.lost, report.doubled) == (0, 0)
        assert len(report.alarms_first) == 4
        assert all(report.alarms_first)
        assert all(report.newest_first)

    uvloop.run(bounded())
