"""Recordings played back: every form of file, every setting, every broken row counted."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.connectors import replay
from appliance.connectors._pace import Leaping
from appliance.connectors._table import MAX_LINE, parse_time
from appliance.connectors.port import Arrival
from appliance.connectors.replay import Replay, Settings
from appliance.errors import ConfigError, ConnectorError
from appliance.events.schema import Reading

SECOND = 1_000_000_000
AT_2024 = 1_704_067_200 * SECOND  # 2024-01-01T00:00:00Z

SKAB = """datetime;Accelerometer1RMS;Volume Flow RateRMS;anomaly;changepoint
2020-03-01 15:44:06;0.0820647;76.0197;0.0;0.0
2020-03-01 15:44:07;0.0827238;76.9806;1.0;1.0
2020-03-01 15:44:09;0.0816479;76.0197;1.0;0.0
"""


def play(connector: Replay, most: int = 10**6) -> list[Arrival]:
    async def main() -> list[Arrival]:
        found: list[Arrival] = []
        async with connector:
            async for arrivals in connector:
                found += arrivals
                if len(found) >= most:
                    break
        return found

    return asyncio.run(main())


def made(folder: Path, text: str, leap: Leaping | None = None, name: str = "pump.csv", **more: Any) -> Replay:
    path = folder / name
    path.write_text(text, "utf-8")
    return replay.create(Settings(file=str(path), **more), (leap or Leaping()).time())


def values(arrivals: list[Arrival]) -> list[dict[str, float]]:
    return [arrival.event.values for arrival in arrivals if isinstance(arrival.event, Reading)]


def offsets(arrivals: list[Arrival], leap: Leaping) -> list[float]:
    return [round((arrival.event.at - leap.start) / SECOND, 3) for arrival in arrivals]


def test_skabs_form_without_its_labels(tmp_path: Path) -> None:
    leap = Leaping()
    arrivals = play(made(tmp_path, SKAB, leap))
    assert {arrival.asset for arrival in arrivals} == {"replay/pump"}
    assert values(arrivals)[0] == {"Accelerometer1RMS": 0.0820647, "Volume Flow RateRMS": 76.0197}
    assert offsets(arrivals, leap) == [0.0, 1.0, 3.0]


def test_a_real_recording(shared_data: Path) -> None:
    connector = replay.create(Settings(file=str(shared_data / "skab" / "valve1" / "0.csv"), speed=0), Leaping().time())
    arrivals = play(connector)
    assert len(arrivals) == connector.ledger.processed > 1000
    assert all(len(row) == 8 and not {"anomaly", "changepoint"} & set(row) for row in values(arrivals))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_each_delimiter(tmp_path: Path, delimiter: str) -> None:
    text = "time,a,b\n1,2.5,3\n2,3.5,4\n".replace(",", delimiter)
    assert values(play(made(tmp_path, text))) == [{"a": 2.5, "b": 3.0}, {"a": 3.5, "b": 4.0}]


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2024-01-01T00:00:00Z", AT_2024),
        ("2024-01-01T01:00:00+01:00", AT_2024),
        ("2024-01-01 00:00:00", AT_2024),
        ("2024-01-01 00:00:00.250", AT_2024 + SECOND // 4),
        ("1704067200", AT_2024),
        ("1704067200.5", AT_2024 + SECOND // 2),
        ("1704067200000", AT_2024),
        ("1704067200000000", AT_2024),
        ("1704067200000000001", AT_2024 + 1),
        ("17", None),
        ("yesterday", None),
        ("inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_times(text: str, ns: int | None) -> None:
    assert parse_time(text) == ns


def test_speed_and_rows_per_second(tmp_path: Path) -> None:
    for more, expected in (
        ({"speed": 2}, [0.0, 0.5, 1.5]),
        ({"rows_per_second": 10}, [0.0, 0.1, 0.2]),
        ({"rows_per_second": 10, "speed": 0}, [0.0, 0.1, 0.2]),
    ):
        leap = Leaping()
        assert offsets(play(made(tmp_path, SKAB, leap, **more)), leap) == expected


def test_full_speed_waits_for_nothing_and_stamps_no_time_twice(tmp_path: Path) -> None:
    leap = Leaping()
    text = "time,a\n" + "".join(f"{AT_2024 // SECOND + row},{row}\n" for row in range(2000))
    arrivals = play(made(tmp_path, text, leap, speed=0))
    assert leap.passed_s == 0
    assert [row["a"] for row in values(arrivals)] == list(range(2000))
    assert len({arrival.event.at for arrival in arrivals}) == 2000


def test_recorded_stamps(tmp_path: Path) -> None:
    text = "time,a\n1704067200,1\n1704067260,2\n"
    arrivals = play(made(tmp_path, text, stamp="recorded"))
    assert [arrival.event.at for arrival in arrivals] == [AT_2024, AT_2024 + 60 * SECOND]


def test_a_row_number_is_a_second(tmp_path: Path) -> None:
    leap = Leaping()
    arrivals = play(made(tmp_path, "row,a\n0,5\n10,6\n20,7\n", leap, speed=2))
    assert offsets(arrivals, leap) == [0.0, 0.5, 1.0]
    with pytest.raises(ConnectorError, match="no times") as raised:
        play(made(tmp_path, "row,a\n0,5\n", stamp="recorded"))
    assert "stamp" in raised.value.remedy


def test_time_running_backwards_stands_still(tmp_path: Path) -> None:
    leap = Leaping()
    text = "time,a\n1704067200,1\n1704067210,2\n1704067205,3\n1704067211,4\n"
    assert offsets(play(made(tmp_path, text, leap)), leap) == [0.0, 10.0, 10.0, 11.0]


def test_a_named_time_column(tmp_path: Path) -> None:
    leap = Leaping()
    text = "a,when\n1,1704067200\n2,1704067203\n"
    arrivals = play(made(tmp_path, text, leap, time_column="when"))
    assert (values(arrivals), offsets(arrivals, leap)) == ([{"a": 1.0}, {"a": 2.0}], [0.0, 3.0])
    with pytest.raises(ConnectorError, match="'whn'") as raised:
        play(made(tmp_path, text, time_column="whn"))
    assert "a, when" in raised.value.remedy


def test_start_rows_and_repeat(tmp_path: Path) -> None:
    text = "row,a\n" + "".join(f"{row},{row}\n" for row in range(10))
    chosen = play(made(tmp_path, text, start_row=3, rows=4))
    assert [row["a"] for row in values(chosen)] == [3, 4, 5, 6]
    leap = Leaping()
    again = play(made(tmp_path, text, leap, start_row=8, repeat=True), most=5)
    assert [row["a"] for row in values(again)] == [8, 9, 8, 9, 8]
    assert offsets(again, leap) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_text_columns_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = 'time,temp (°C),status,"a, b",Anomaly\n1,20.5,on,1,0\n2,21,off,2,1\n'
    assert values(play(made(tmp_path, text))) == [{"temp (°C)": 20.5, "a, b": 1.0}, {"temp (°C)": 21.0, "a, b": 2.0}]
    assert "left out: status, Anomaly" in caplog.text


def test_missing_values_are_missing_points(tmp_path: Path) -> None:
    text = "time,a,b\n1,1,\n2,NaN,2\n3,3,3\n"
    assert values(play(made(tmp_path, text))) == [{"a": 1.0}, {"b": 2.0}, {"a": 3.0, "b": 3.0}]


def test_broken_rows_are_counted_by_reason_and_skipped(tmp_path: Path) -> None:
    good = "".join(f"2024-01-01 00:00:{second:02},1,2\n" for second in range(20))
    broken = (
        "2024-01-01 00:01:00,one,2\n"
        "2024-01-01 00:01:00,1\n"
        "2024-01-01 00:01:00,1,2,3\n"
        "when?,1,2\n"
        "2024-01-01 00:01:00,inf,2\n"
        "2024-01-01 00:01:00,,\n"
        "\n"
        f"2024-01-01 00:01:00,{'9' * 2 * MAX_LINE},2\n"
        f'2024-01-01 00:01:00,"{"9" * 200_000}",2\n'
        '2024-01-01 00:01:00,"1,2\n'
    )
    connector = made(tmp_path, "time,a,b\n" + good + broken + good)
    assert len(play(connector)) == 40
    ledger = connector.ledger
    assert ledger.dropped == {
        "not-a-number": 1,
        "columns": 3,
        "time": 1,
        "not-finite": 1,
        "empty": 1,
        "too-long": 1,
        "malformed": 1,
    }
    assert (ledger.received, ledger.processed, ledger.queued) == (49, 40, 0)
    assert "pump.csv" in ledger.examples["not-a-number"]


def test_a_file_of_broken_rows_gives_others_their_turn(tmp_path: Path) -> None:
    leap = Leaping()
    text = "time,a\n1704067200,1\n" + "1704067200,x\n" * 20 + "1704067201,1\n" * 40 + "1704067201,\n" * 5000
    connector = made(tmp_path, text, leap, speed=0)
    assert len(play(connector)) == 41
    assert len(leap.waited) >= 5000 // replay.BATCH


def test_several_files_play_side_by_side(tmp_path: Path) -> None:
    leap = Leaping()
    for folder, rows in (("one", "1704067200,1\n1704067202,2\n"), ("two", "1704067300,5\n1704067301,6\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.csv").write_text("time,a\n" + rows)
    files = [str(tmp_path / folder / "0.csv") for folder in ("one", "two")]
    arrivals = play(replay.create(Settings(file=files), leap.time()))
    assert [arrival.asset for arrival in arrivals] == [f"replay/{name}/0" for name in ("one", "two", "two", "one")]
    assert offsets(arrivals, leap) == [0.0, 0.0, 1.0, 2.0]


def test_with_an_asset_files_are_one_recording(tmp_path: Path) -> None:
    leap = Leaping()
    for name, rows in (("a.csv", "1704067200,1\n1704067202,2\n"), ("b.csv", "1704067300,5\n1704067301,6\n")):
        (tmp_path / name).write_text("time,a\n" + rows)
    arrivals = play(replay.create(Settings(file=str(tmp_path), asset="line1/pump"), leap.time()))
    assert {arrival.asset for arrival in arrivals} == {"line1/pump"}
    assert [row["a"] for row in values(arrivals)] == [1, 2, 5, 6]
    assert offsets(arrivals, leap) == [0.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no first line"),
        ("time,a\n", "no rows"),
        ("temperature\n1\n2\n", "single column"),
        ("time,name\n1,pump\n2,valve\n", "no column of numbers"),
        ("1,2,3\n4,5,6\n", "holds numbers"),
        ("time," + ",".join(f"c{i}" for i in range(1500)) + "\n" + "1" + ",2" * 1500 + "\n", "1500 columns of numbers"),
    ],
)
def test_a_file_that_cannot_be_played_is_named_with_the_remedy(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConnectorError, match=problem) as raised:
        play(made(tmp_path, text))
    assert "pump.csv" in raised.value.message
    assert raised.value.remedy


def test_a_missing_file_or_empty_folder_is_named(tmp_path: Path) -> None:
    for file in (str(tmp_path / "none.csv"), str(tmp_path)):
        with pytest.raises(ConnectorError, match=str(tmp_path)) as raised:
            play(replay.create(Settings(file=file), Leaping().time()))
        assert "[connectors.replay]" in raised.value.remedy


def test_repeating_nothing_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match="no row of replay/pump"):
        play(made(tmp_path, "time,a\n1,1\n2,2\n", start_row=5, repeat=True))


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot repeat"):
        made(tmp_path, SKAB, repeat=True, stamp="recorded")
    with pytest.raises(ConfigError, match="Line 1"):
        made(tmp_path, SKAB, asset="Line 1")


@given(st.binary(max_size=300) | st.text(st.sampled_from('ab1,;\t\n". -e'), max_size=300).map(str.encode))
@example(b'time,a\n1,"2\n2,3\n')
@example(b"\xef\xbb\xbftime;a\n2024-01-01;2\n")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_the_books_balance(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    connector = replay.create(Settings(file=str(path), speed=0), Leaping().time())
    try:
        arrivals = play(connector)
    except ConnectorError:
        return
    ledger = connector.ledger
    assert len(arrivals) == ledger.processed
    assert ledger.received == ledger.processed + sum(ledger.dropped.values())
