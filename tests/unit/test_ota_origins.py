"""Several places, in order; receipts that wait for a stick; what a person takes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ota import courier, install
from ota.courier import MAX_WAITING, Owed, Receipt
from ota.errors import FetchError, MissingError
from ota.install import Book, Order, Step
from ota.sources import Answer, Folder, Several


class Place:
    """A source that has what it is given, and may break off."""

    courier = False

    def __init__(self, name: str, files: dict[str, bytes], breaks: bool = False, away: bool = False) -> None:
        self.name, self._files, self._breaks, self._away = name, files, breaks, away
        self.asked = 0

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def open(self, name: str, offset: int = 0) -> Iterator[Answer]:
        self.asked += 1
        if self._away:
            raise FetchError(f"{self}: away")
        if name not in self._files:
            raise MissingError(f"{self}: no {name}")
        yield Answer(offset, self._chunks(self._files[name][offset:]))

    def _chunks(self, data: bytes) -> Iterator[bytes]:
        yield data[: len(data) // 2]
        if self._breaks:
            raise FetchError(f"{self}: broke off")
        yield data[len(data) // 2 :]


def content(several: Several, name: str = "file", offset: int = 0) -> bytes:
    with several.open(name, offset) as answer:
        return b"".join(answer.chunks)


DATA = bytes(range(100))


def test_the_first_that_has_it_gives_it() -> None:
    places = Place("web", {}), Place("stick", {"file": DATA}), Place("third", {"file": b"other"})
    assert content(Several(places)) == DATA
    assert content(Several(places), offset=90) == DATA[90:]
    assert places[2].asked == 0


def test_one_that_breaks_off_is_asked_last_from_then_on() -> None:
    bad, good = Place("web", {"file": DATA}, breaks=True), Place("stick", {"file": DATA})
    several = Several([bad, good])
    with pytest.raises(FetchError, match="broke off"):
        content(several)
    assert content(several) == DATA
    assert (bad.asked, good.asked) == (1, 1)


def test_what_nobody_has_is_missing_and_what_is_away_may_come_back() -> None:
    with pytest.raises(MissingError, match="no file"):
        content(Several([Place("web", {}), Place("stick", {})]))
    with pytest.raises(FetchError, match="away") as told:
        content(Several([Place("stick", {}), Place("web", {}, away=True)]))
    assert not isinstance(told.value, MissingError)
    with pytest.raises(MissingError, match="no source"):
        content(Several([]))


def test_a_folder_that_is_pulled_out_is_one_that_does_not_have_it(tmp_path: Path) -> None:
    assert content(Several([Folder(tmp_path / "gone"), Place("web", {"file": DATA})])) == DATA


# ---- receipts -------------------------------------------------------------------------------------------------------


def receipt(number: int) -> Receipt:
    return Receipt("box-1", float(number), "pump", "1.2.0", f"{number:064x}", "confirmed")


def test_receipts_wait_for_a_stick_and_are_left_once(tmp_path: Path) -> None:
    stick, owed = tmp_path / "stick", Owed(tmp_path / "receipts.json")
    stick.mkdir()
    assert owed.settle({"a": receipt(1)}, []) == []
    assert owed.count == 1
    again = Owed(tmp_path / "receipts.json")  # over a restart
    left = again.settle({"a": receipt(1), "b": receipt(2)}, [stick])
    assert len(left) == 2
    found = sorted(courier.receipts(stick / "millwright" / "receipts"), key=lambda one: one.at_s)
    assert found == [receipt(1), receipt(2)]
    assert again.settle({"a": receipt(1), "b": receipt(2)}, [stick]) == []
    assert Owed(tmp_path / "receipts.json").count == 0


def test_a_stick_that_cannot_be_written_leaves_them_waiting(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.write_text("no folder")
    owed = Owed(tmp_path / "receipts.json")
    assert owed.settle({"a": receipt(1)}, [stick]) == []
    assert owed.count == 1


def test_receipts_are_bounded_and_a_file_of_them_that_is_damaged_stops_nothing(tmp_path: Path) -> None:
    owed = Owed(tmp_path / "receipts.json")
    owed.settle({str(number): receipt(number) for number in range(MAX_WAITING + 50)}, [])
    assert owed.count == MAX_WAITING
    (tmp_path / "receipts.json").write_bytes(b"\xff{")
    assert Owed(tmp_path / "receipts.json").count == 0


# ---- what is taken back ---------------------------------------------------------------------------------------------


def waiting(*bundles: str) -> Book:
    book = Book()
    for bundle in bundles:
        book = install.ask(book, Order(bundle * 4, "pump", "1.0", bundle * 64), 0)
    return book


def test_what_is_taken_back_is_no_bad_bundle() -> None:
    book = install.withdraw(waiting("a", "b"), "bbbb", "the campaign was stopped", 5)
    assert [one.order.bundle[0] for one in book.waiting] == ["a"]
    [ended] = book.history
    assert (ended.step, ended.reason, book.refused) == (Step.REFUSED, "the campaign was stopped", {})
    assert install.ask(book, Order("cccc", "pump", "1.0", "b" * 64), 6).waiting[-1].order.id == "cccc"


def test_what_runs_already_and_what_nobody_asked_for_is_left_alone() -> None:
    book = waiting("a")
    while book.active is not None and book.active.step is not Step.PROMOTED:
        book = install.proceed(book, 1)
    assert install.withdraw(book, "aaaa", "stopped", 5) is book
    assert install.withdraw(book, "zzzz", "stopped", 5) is book
