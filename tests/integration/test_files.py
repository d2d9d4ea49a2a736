"""Files that are being written: rows as they are added, whole lines only, rotated files, files that are no table."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.connectors import _parquet, files
from appliance.connectors._pace import Leaping
from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError
from appliance.events.ledger import Ledger
from appliance.events.schema import Reading

PATIENCE_S = 20.0
HEAD = "at,temperature,label\n"


class Folder:
    """A connector over a folder, read in steps: each step writes, and waits for what comes of it."""

    def __init__(self, path: Path, **settings: Any) -> None:
        told = {"folder": str(path), "asset": "lab", "start": "beginning"} | settings
        self.path = path
        self.connector = files.create(msgspec.convert(told, files.Settings), Leaping().time())

    def play(self, *steps: tuple[Callable[[Path], object], int]) -> list[list[Arrival]]:
        async def main() -> list[list[Arrival]]:
            found = []
            async with asyncio.timeout(PATIENCE_S), self.connector:
                batches = aiter(self.connector)
                for act, rows in steps:
                    act(self.path)
                    here: list[Arrival] = []
                    while len(here) < rows:
                        here += await anext(batches)
                    found.append(here)
            return found

        return asyncio.run(main())


def adds(name: str, text: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return act


def values(arrivals: list[Arrival]) -> list[float]:
    return [event.values["temperature"] for _, event in arrivals if isinstance(event, Reading)]


def row(number: int) -> str:
    return f"2026-01-01T00:00:{number:02},{number},x\n"


def test_rows_are_readings_as_they_are_added(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    found = folder.play(
        (adds("a.csv", HEAD + row(1)), 1),
        (adds("a.csv", row(2) + row(3)), 2),
        (adds("b.csv", HEAD + row(4)), 1),
        (adds("a.csv", "broken\n" + row(5)), 1),
    )
    assert [values(one) for one in found] == [[1], [2, 3], [4], [5]]
    assert folder.connector.ledger.dropped == {"columns": 1}
    assert folder.connector.ledger.queued == 0


def test_a_line_counts_when_its_end_is_there(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        adds("a.csv", row(2)[:-4])(path)
        adds("b.csv", HEAD + row(7))(path)

    found = Folder(tmp_path).play((adds("a.csv", HEAD + row(1)), 1), (half, 1), (adds("a.csv", row(2)[-4:]), 1))
    assert [values(one) for one in found] == [[1], [7], [2]]


def test_what_is_there_at_the_start_is_left_out_where_only_news_count(tmp_path: Path) -> None:
    adds("a.csv", HEAD + "".join(map(row, range(1, 40))))(tmp_path)
    found = Folder(tmp_path, start="end").play((adds("new.csv", HEAD + row(50)), 1), (adds("a.csv", row(41)), 1))
    assert [values(one) for one in found] == [[50], [41]]


def test_rotated_files_are_read_anew(tmp_path: Path) -> None:
    def rotate(path: Path) -> None:
        (path / "a.csv").rename(path / "a.csv.1")
        adds("a.csv", HEAD + row(9))(path)

    def cut(path: Path) -> None:
        (path / "a.csv").write_text(HEAD + row(8))

    found = Folder(tmp_path).play(
        (adds("a.csv", HEAD + row(1) + row(2)), 2), (rotate, 1), (adds("a.csv", row(3)), 1), (cut, 1)
    )
    assert [values(one) for one in found] == [[1, 2], [9], [3], [8]]


def test_an_asset_a_file_and_recorded_times(tmp_path: Path) -> None:
    (found,) = Folder(tmp_path, per_file=True, stamp="recorded").play((adds("balance 1.csv", HEAD + row(1)), 1))
    assert found == [Arrival("lab/balance-1", Reading(1_767_225_601_000_000_000, {"temperature": 1.0}))]


@pytest.mark.parametrize(
    ("text", "wrong"), [("no table\nat all\n", "single column"), ("a;b\nx;y\n", "no column of numbers")]
)
def test_a_file_that_is_no_table_is_counted_and_left_alone(tmp_path: Path, text: str, wrong: str) -> None:
    def both(path: Path) -> None:
        adds("a.csv", text)(path)
        adds("b.csv", HEAD + row(1))(path)

    folder = Folder(tmp_path)
    assert [values(one) for one in folder.play((both, 1), (adds("b.csv", row(2)), 1))] == [[1], [2]]
    assert folder.connector.ledger.dropped == {"no-table": 1}
    assert wrong in folder.connector.ledger.examples["no-table"]


@pytest.mark.parametrize("kind", [files.Followed, _parquet.Followed])
def test_a_file_that_is_gone_since_it_was_listed_costs_nothing(
    tmp_path: Path, kind: type[files.Followed | _parquet.Followed]
) -> None:
    ledger = Ledger()
    assert kind(tmp_path / "gone.csv", "", ledger, at_end=False).rows() == []
    assert ledger.received == 0


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match="there is no folder"):
        Folder(tmp_path / "nowhere").play()
