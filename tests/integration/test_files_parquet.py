"""Parquet files that are being written: whole ones, what is added to them, and what is none."""

import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError
from appliance.events.schema import Reading
from tests.integration.test_files import HEAD, Folder, adds, row, values

SECOND = 1_000_000_000
NEW_YEAR = 1_767_225_600 * SECOND


def table(*temperatures: float, **others: Any) -> pa.Table:
    times = pa.array([NEW_YEAR // 1000 + 1_000_000 * number for number in range(len(temperatures))], pa.timestamp("us"))
    return pa.table({"temperature": list(temperatures), "measured": times, **others})


def writes(name: str, what: pa.Table, **options: Any) -> Callable[[Path], object]:
    return lambda folder: parquet.write_table(what, folder / name, **options)


def folder(path: Path, **settings: Any) -> Folder:
    return Folder(path, pattern="*", **settings)


def test_rows_are_readings_at_their_recorded_times(tmp_path: Path) -> None:
    what = table(1.5, 2.5, text=["a", "b"], count=[7, None], exact=[Decimal("1.25"), Decimal("2.5")])
    (found,) = folder(tmp_path, stamp="recorded").play((writes("a.parquet", what), 2))
    assert found == [
        Arrival("lab", Reading(NEW_YEAR, {"temperature": 1.5, "count": 7.0, "exact": 1.25})),
        Arrival("lab", Reading(NEW_YEAR + SECOND, {"temperature": 2.5, "exact": 2.5})),
    ]


@pytest.mark.parametrize(
    "times",
    [
        pa.array(["2026-01-01T00:00:00Z"]),
        pa.array([NEW_YEAR // SECOND]),
        pa.array([float(NEW_YEAR // SECOND)]),
        pa.array([NEW_YEAR // SECOND // 86_400], pa.date32()),
        pa.array([NEW_YEAR // 1_000_000], pa.timestamp("ms", "Asia/Shanghai")),
    ],
)
def test_times_in_any_form(tmp_path: Path, times: pa.Array) -> None:
    what = pa.table({"temperature": [3.0], "time": times})
    (found,) = folder(tmp_path, stamp="recorded").play((writes("a.pq", what), 1))
    assert found == [Arrival("lab", Reading(NEW_YEAR, {"temperature": 3.0}))]


def test_a_file_counts_when_its_end_is_there(tmp_path: Path) -> None:
    whole = tmp_path / "elsewhere"
    parquet.write_table(table(1, 2, 3), whole)
    data = whole.read_bytes()
    whole.unlink()

    def half(path: Path) -> None:
        (path / "a.parquet").write_bytes(data[:-20])
        adds("b.csv", HEAD + row(7))(path)

    def rest(path: Path) -> None:
        with (path / "a.parquet").open("ab") as file:
            file.write(data[-20:])

    connector = folder(tmp_path)
    assert [values(one) for one in connector.play((half, 1), (rest, 3))] == [[7], [1, 2, 3]]
    assert connector.connector.ledger.dropped == {}
    assert connector.connector.ledger.queued == 0


def test_what_is_added_is_read_and_another_content_is_read_anew(tmp_path: Path) -> None:
    one, two = table(1, 2), table(3, 4)

    def grow(path: Path) -> None:
        with parquet.ParquetWriter(path / "a.parquet", one.schema) as writer:
            writer.write_table(one)
            writer.write_table(two)

    found = folder(tmp_path).play(
        (writes("a.parquet", one), 2), (grow, 2), (writes("a.parquet", table(8, 9)), 2), (writes("b.parquet", one), 2)
    )
    assert [values(each) for each in found] == [[1, 2], [3, 4], [8, 9], [1, 2]]


def test_what_is_there_at_the_start_is_left_out_where_only_news_count(tmp_path: Path) -> None:
    writes("old.parquet", table(1, 2))(tmp_path)
    found = folder(tmp_path, start="end").play((writes("new.parquet", table(3)), 1))
    assert [values(one) for one in found] == [[3]]


def test_many_rows_come_in_parts(tmp_path: Path) -> None:
    (found,) = folder(tmp_path).play((writes("a.parquet", table(*range(9000)), row_group_size=4000), 9000))
    assert values(found) == list(range(9000))


def test_broken_values_cost_their_rows(tmp_path: Path) -> None:
    connector = folder(tmp_path)
    (found,) = connector.play((writes("a.parquet", table(1, float("inf"), float("nan"), 4)), 2))
    assert values(found) == [1, 4]
    assert connector.connector.ledger.dropped == {"not-finite": 1, "empty": 1}


def _rotten(path: Path) -> None:
    file = path / "a.parquet"
    parquet.write_table(table(*range(3000)), file, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[5000:5100] = bytes(100)
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda path: (path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 200 + b"PAR1"), "no-table"),
        (lambda path: (path / "a.parquet").write_bytes(b"at,temperature\n1,2\n"), "no-table"),
        (lambda path: parquet.write_table(pa.table({"text": ["a"]}), path / "a.parquet"), "no-table"),
        (_rotten, "malformed"),
    ],
)
def test_a_file_that_is_none_is_counted_once_and_left_alone(
    tmp_path: Path, act: Callable[[Path], object], reason: str
) -> None:
    def both(path: Path) -> None:
        act(path)
        adds("b.csv", HEAD + row(1))(path)

    connector = folder(tmp_path)
    assert [values(one) for one in connector.play((both, 1), (adds("b.csv", row(2)), 1))] == [[1], [2]]
    assert connector.connector.ledger.dropped == {reason: 1}
    assert "a.parquet" in connector.connector.ledger.examples[reason]


def test_without_the_library_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed
    with pytest.raises(ConnectorError, match="need pyarrow") as error:
        folder(tmp_path).play((writes("a.parquet", table(1)), 1))
    assert error.value.remedy == "tools/setup parquet"
