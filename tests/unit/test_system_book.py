"""The book of an installation of a system: any order of questions and restarts leaves it in order."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.system import book as books
from ota.system.book import Book, BookError, Slot, Step

OLD, NEW = "1.1", "1.2"
GOOD_OLD = Slot(OLD, blessed=True, whole=True, given_up=False)


def at(step: Step) -> Book:
    book = books.begin(books.settle(Book(), GOOD_OLD, 1), NEW, "0" * 64, OLD, 1)
    for now in range(2, 2 + books.PATH.index(step)):
        book = books.proceed(book, now)
    assert book.active is not None
    assert book.active.step is step
    return book


def waiting() -> Book:
    return at(Step.WAITING)


def test_a_version_that_comes_up_and_is_blessed_is_committed() -> None:
    tried = books.settle(waiting(), Slot(NEW, blessed=False, whole=True, given_up=False), 6)
    assert tried.active is not None
    assert tried.active.step is Step.TRYING
    done = books.settle(tried, Slot(NEW, blessed=True, whole=True, given_up=False), 7)
    assert (done.active, done.committed, done.refused) == (None, NEW, {})
    assert [stage.step for stage in done.history[-1].trail][-3:] == [Step.WAITING, Step.TRYING, Step.COMMITTED]


@pytest.mark.parametrize(
    ("slot", "remembered"),
    [(Slot(OLD, True, whole=True, given_up=True), True), (Slot(OLD, True, whole=False, given_up=False), False)],
)
def test_a_version_that_does_not_come_up_is_rolled_back(slot: Slot, remembered: bool) -> None:
    done = books.settle(waiting(), slot, 9)
    assert done.active is None
    assert done.history[-1].step is Step.ROLLED_BACK
    assert (NEW in done.refused) == remembered
    assert done.committed == OLD


def test_a_start_in_vain_is_followed_by_another() -> None:
    tried = books.settle(waiting(), Slot(NEW, False, True, False), 6)
    again = books.settle(tried, GOOD_OLD, 7)
    assert again.active is not None
    assert again.active.step is Step.WAITING
    assert books.settle(again, Slot(NEW, True, True, False), 8).committed == NEW


def test_a_cut_between_the_boot_entry_and_the_book_is_seen_by_what_runs() -> None:
    writing = at(Step.WRITING)
    tried = books.settle(writing, Slot(NEW, blessed=False, whole=True, given_up=False), 6)
    assert tried.active is not None
    assert tried.active.step is Step.TRYING
    for book in (writing, tried):
        done = books.settle(book, Slot(NEW, blessed=True, whole=True, given_up=False), 7)
        assert (done.active, done.committed, done.refused) == (None, NEW, {})
        assert books.begin(done, "1.3", "1" * 64, NEW, 8).active is not None
    assert NEW in books.give_up(tried, "a person", 8).refused


def test_what_was_tried_in_vain_before_the_book_said_so_is_rolled_back() -> None:
    done = books.settle(at(Step.WRITING), Slot(OLD, True, whole=True, given_up=True), 9)
    assert done.active is None
    assert done.history[-1].step is Step.ROLLED_BACK
    assert NEW in done.refused


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_being_written_and_was_not_tried_is_written_on(whole: bool) -> None:
    book = at(Step.WRITING)
    assert books.settle(book, Slot(OLD, True, whole=whole, given_up=False), 9) == book


@pytest.mark.parametrize("step", books.PATH[:3])
def test_before_it_is_written_no_restart_says_anything(step: Step) -> None:
    book = at(step)
    assert books.settle(book, Slot(OLD, True, whole=True, given_up=True), 9) == book


def test_only_one_at_a_time_and_the_same_one_goes_on() -> None:
    book = waiting()
    assert books.begin(book, NEW, "0" * 64, OLD, 9) == book
    with pytest.raises(BookError, match="rollback"):
        books.begin(book, "1.3", "1" * 64, OLD, 9)
    with pytest.raises(BookError, match="restart"):
        books.proceed(book, 9)
    for act in (lambda: books.proceed(Book(), 1), lambda: books.fail(Book(), "", 1), lambda: books.note(Book(), "")):
        with pytest.raises(BookError):
            act()


def test_what_is_wrong_in_itself_is_remembered_until_it_is_asked_for_again() -> None:
    book = books.fail(books.begin(Book(), NEW, "0" * 64, OLD, 1), "its root hash is another", 2)
    assert book.refused == {NEW: "refused: its root hash is another"}
    assert books.begin(book, NEW, "0" * 64, OLD, 3).refused == {}


SLOTS = st.builds(Slot, st.sampled_from([OLD, NEW, "1.3", ""]), st.booleans(), st.booleans(), st.booleans())


ACTS: dict[str, Callable[[Book, int], Book]] = {
    "proceed": books.proceed,
    "fail": lambda book, now: books.fail(book, "why", now),
    "give_up": lambda book, now: books.give_up(book, "why", now),
    "note": lambda book, now: books.note(book, "why"),
}


@given(acts=st.lists(st.sampled_from(["begin", "proceed", "fail", "give_up", "note"]) | SLOTS, max_size=30))
def test_whatever_happens_it_stays_in_order(acts: list[str | Slot]) -> None:
    book, committed = Book(), ""
    for now, act in enumerate(acts):
        before = book
        try:
            if isinstance(act, Slot):
                book = books.settle(book, act, now)
            elif act == "begin":
                book = books.begin(book, NEW, "0" * 64, OLD, now)
            else:
                book = ACTS[act](book, now)
        except BookError:
            assert book is before
        assert books.decode(books.encode(book)) == book
        assert book.active is None or book.active.step not in books.ENDS
        assert all(one.step in books.ENDS for one in book.history)
        assert books.order(book.committed) >= books.order(committed)
        committed = book.committed


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"active": {}}', b'{"history": [{"version": "1", "release": "", "before": "", "trail": []}]}']
)
def test_bytes_that_are_no_book(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        books.decode(data)
