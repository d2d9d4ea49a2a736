"""What follows from two looks at the machine."""

import asyncio

import pytest

from appliance.connectors import host
from appliance.connectors._names import level
from appliance.connectors._pace import Leaping
from appliance.connectors.host import Sample, rates
from appliance.errors import ConnectorError
from appliance.events.schema import Reading


def test_rates_come_from_differences() -> None:
    before = Sample({}, {"disk_read_bytes_per_s": 1000}, 10.0, 90.0)
    now = Sample({}, {"disk_read_bytes_per_s": 5000}, 13.0, 91.0)
    assert rates(before, now, 2.0) == {"disk_read_bytes_per_s": 2000.0, "cpu_percent": 75.0}


def test_a_counter_that_ran_backwards_or_is_new_has_no_rate() -> None:
    before = Sample({}, {"network_sent_bytes_per_s": 5000}, 10.0, 90.0)
    now = Sample({}, {"network_sent_bytes_per_s": 100, "disk_read_bytes_per_s": 7}, 10.0, 90.0)
    assert rates(before, now, 1.0) == {}


def test_rates_begin_with_the_second_reading_and_no_channel_is_a_clock() -> None:
    async def main() -> list[Reading]:
        found: list[Reading] = []
        async with host.create(host.Settings(asset="hall/box"), Leaping().time()) as connector:
            async for arrivals in connector:
                found += [arrival.event for arrival in arrivals if isinstance(arrival.event, Reading)]
                if len(found) == 3:
                    break
        return found

    first, _, third = asyncio.run(main())
    assert {"load_1m", "memory_used_percent", "disk_used_percent"} <= set(first.values)
    assert not any(name.endswith("_per_s") for name in first.values)
    assert "network_sent_bytes_per_s" in third.values or "disk_read_bytes_per_s" in third.values
    assert not any(word in name for name in third.values for word in ("uptime", "boot", "time", "date"))


def test_a_disk_that_is_not_there_is_named() -> None:
    async def main() -> None:
        async with host.create(host.Settings(disk="/no/such/place"), Leaping().time()) as connector:
            async for _ in connector:
                pass

    with pytest.raises(ConnectorError, match="/no/such/place") as raised:
        asyncio.run(main())
    assert "disk" in raised.value.remedy


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("Anna's PC", "anna-s-pc"),
        ("box-1.example", "box-1.example"),
        ("日本", "host"),
        ("", "host"),
        ("A" * 99, "a" * 60),
    ],
)
def test_a_host_name_is_made_to_fit(name: str, made: str) -> None:
    assert level(name, "host") == made
