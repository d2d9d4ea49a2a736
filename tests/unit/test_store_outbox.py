"""The outbox: order, numbers, books, what gives way, and what survives an end in the middle."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DamagedError, StoreError
from appliance.store import parcels, thinning
from appliance.store.outbox import NOTHING, Outbox, settled
from appliance.store.parcels import Entry, Lane, Load, Parcel
from appliance.store.thinning import Drop, Facts, Halve

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An outbox's file before its first use: making its tables takes a process."""
    box = Outbox(tmp_path_factory.mktemp("blank") / "outbox.sqlite", PLENTY)
    box.turn()
    box.close()
    return box.path.read_bytes()


Make = Callable[..., Outbox]


@pytest.fixture
def make(blank: bytes, tmp_path: Path) -> Iterator[Make]:
    made: list[Outbox] = []

    def opened(budget: int = PLENTY, when_full: thinning.WhenFull = "thin", name: str = "outbox") -> Outbox:
        path = tmp_path / f"{name}.sqlite"
        if not path.exists():
            path.write_bytes(blank)
        made.append(Outbox(path, budget, when_full))
        return made[-1]

    yield opened
    for box in made:
        box.close()


def readings(count: int, first: int = 0, assets: int = 4, size: int = 8) -> list[Entry]:
    return [
        Entry(Lane.READING, f"reading/a{number % assets}", str(number).encode().rjust(size))
        for number in range(first, first + count)
    ]


def alarm(text: str, key: str = "alarm/pump") -> Entry:
    return Entry(Lane.ALARM, key, text.encode(), key)


def state(text: str, key: str = "state/record", sense: str = "") -> Entry:
    return Entry(Lane.STATE, key, text.encode(), key, sense.encode())


def texts(found: list[Parcel]) -> list[str]:
    return [one.payload.decode().strip() for one in found]


def balance(box: Outbox) -> bool:
    books = box.books()
    return books.received == books.sent + books.waiting + sum(books.dropped.values())


def drain(box: Outbox, want: int = 100) -> list[Parcel]:
    found: list[Parcel] = []
    batch = box.turn(want=want)
    while batch:
        found += batch
        batch = box.turn(confirmed=settled(batch), want=want)
    return found


def test_alarms_leave_first_and_the_newest_of_them_before_the_others(make: Make) -> None:
    box = make()
    box.turn(
        [*readings(3), Entry(Lane.SCORE, "score/a", b"score"), state("state"), alarm("one", "a"), alarm("two", "b")]
    )
    assert texts(box.turn(want=100)) == ["two", "one", "state", "score", "0", "1", "2"]


def test_what_was_numbered_keeps_its_number_though_newer_alarms_come(make: Make) -> None:
    box = make()
    box.turn([alarm("one", "a"), alarm("two", "b")])
    first = box.turn(want=10)
    box.turn([alarm("three", "c")])
    again = box.turn(want=10)
    assert texts(again) == ["two", "one", "three"]
    assert again[:2] == first
    assert [(one.prev, one.seq) for one in again] == [(0, 1), (1, 2), (2, 3)]


def test_an_alarm_that_was_followed_by_another_state_of_it_is_not_the_newest(make: Make) -> None:
    box = make()
    box.turn([alarm("raised"), alarm("over")])
    assert [(one.payload, one.newest) for one in box.turn(want=10)] == [(b"over", True), (b"raised", False)]


def test_states_send_only_what_changed_and_only_the_last(make: Make) -> None:
    box = make()
    box.turn([state("at 1: on", sense="on"), state("at 2: on", sense="on")])
    batch = box.turn(want=10)
    assert texts(batch) == ["at 1: on"]
    box.turn([state("at 3: on", sense="on"), state("off"), state("on", sense="on")], settled(batch))
    assert texts(drain(box)) == ["on"]
    assert box.books().dropped == {"unchanged": 2, "superseded": 1}
    assert balance(box)


def test_a_state_under_way_is_not_replaced(make: Make) -> None:
    box = make()
    box.turn([state("one")])
    under_way = box.turn(want=10)
    box.turn([state("two")])
    assert texts(under_way + box.turn(confirmed=settled(under_way), want=10)) == ["one", "two"]


def test_what_the_bus_delivers_twice_leaves_once_even_after_a_restart(make: Make) -> None:
    twice = [Entry(Lane.READING, "reading/a", b"x", mark=parcels.mark("reading/a", b"x"))]
    box = make()
    box.turn([*twice, *twice])
    box.close()
    again = make()
    again.turn(twice)
    assert again.books().dropped == {"duplicate": 2}
    assert texts(drain(again)) == ["x"]


def test_what_was_not_confirmed_comes_again_from_the_next_process(make: Make) -> None:
    box = make()
    box.turn(readings(10))
    batch = box.turn(want=4)
    box.turn(confirmed=settled(batch[:3]))
    identity = box.identity
    box.close()
    again = make()
    assert texts(again.turn(want=4)) == ["3", "4", "5", "6"]
    assert again.turn(want=4)[0].prev == 3
    assert again.identity == identity
    assert balance(again)


def test_a_batch_may_be_asked_for_while_others_are_under_way(make: Make) -> None:
    box = make()
    box.turn([*readings(10), alarm("one", "a"), alarm("two", "b")])
    first = box.turn(want=4)
    box.turn([alarm("three", "c")])
    ends = {one.lane: one.seq for one in first}
    second = box.turn(want=4, under_way=ends)
    assert texts(first) == ["two", "one", "0", "1"]
    assert texts(second) == ["three", "2", "3", "4"]
    assert [(one.prev, one.seq) for one in second] == [(2, 3), (2, 3), (3, 4), (4, 5)]
    assert box.turn(confirmed=settled(first), want=4) == second
    assert texts(box.turn(confirmed=settled(second), want=10)) == ["5", "6", "7", "8", "9"]
    assert balance(box)


def test_a_full_outbox_thins_readings_before_it_drops_any(make: Make) -> None:
    box = make(budget=300_000)
    for first in range(0, 4000, 500):
        box.turn([*readings(500, first, size=100), alarm(f"alarm {first}")])
    books = box.books()
    assert books.dropped["thinned"] > 0
    assert "budget" not in books.dropped
    found = drain(box)
    assert balance(box)
    assert sum(one.lane is Lane.ALARM for one in found) == 8
    numbers = [int(text) for text in texts(found) if text.isdigit()]
    assert numbers == sorted(numbers)
    assert {number % 4 for number in numbers} == {0, 1, 2, 3}


def test_an_alarm_is_never_dropped_whatever_the_budget(make: Make) -> None:
    box = make(budget=100_000)
    for first in range(0, 3000, 100):
        box.turn([*readings(100, first, assets=100, size=500), *(alarm(f"{first} {n}" * 50) for n in range(10))])
    assert sum(one.lane is Lane.ALARM for one in drain(box)) == 300
    assert box.books().dropped["budget"] > 0
    assert balance(box)


def test_the_policy_says_which_end_is_dropped(make: Make) -> None:
    old, new = make(150_000, "drop-oldest", "old"), make(150_000, "drop-newest", "new")
    for box in (old, new):
        for first in range(0, 1000, 100):
            box.turn(readings(100, first, size=500))
        assert "thinned" not in box.books().dropped
        assert balance(box)
    assert "999" in texts(drain(old))
    assert "0" in texts(drain(new))
    assert "999" not in texts(drain(new))


@pytest.mark.parametrize("when_full", ["thin", "drop-oldest", "drop-newest"])
def test_a_backlog_of_single_readings_keeps_to_the_budget(make: Make, when_full: thinning.WhenFull) -> None:
    """What came one by one gives way to what comes in a burst, however many of the ones it takes."""
    budget = 400_000
    box = make(budget, when_full)
    for number in range(600):
        box.turn(readings(1, number, size=400))
    box.turn(readings(600, 600, size=400))
    assert box.bytes_used() <= budget
    assert balance(box)
    assert ("thinned" in box.books().dropped) == (when_full == "thin")
    numbers = [int(text) for text in texts(drain(box))]
    assert numbers == sorted(numbers)


def test_what_is_under_way_does_not_give_way(make: Make) -> None:
    box = make(budget=200_000)
    box.turn(readings(300, size=100))
    under_way = box.turn(want=100)
    for first in range(300, 3000, 300):
        box.turn(readings(300, first, size=100))
    assert box.books().dropped
    assert box.turn(want=100)[:100] == under_way


def test_a_long_backlog_leaves_in_order_though_each_reading_lies_in_a_frame_of_its_own(make: Make) -> None:
    box = make()
    for number in range(100):
        box.turn(readings(1, number))
    box.close()
    assert texts(drain(make(), want=33)) == [str(number) for number in range(100)]


def test_a_full_disk_changes_nothing(make: Make) -> None:
    box = make()
    box.turn(readings(2))
    box._opened().execute("PRAGMA max_page_count = 1")  # as many as there are: SQLite takes no more
    with pytest.raises(StoreError):
        box.turn(readings(100, 2, size=1000))
    assert box.books().received == 2
    box.turn(readings(1, 2))
    assert texts(drain(box)) == ["0", "1", "2"]
    assert balance(box)


def test_what_a_release_before_this_one_left_behind_leaves(make: Make) -> None:
    box = make()
    box.turn([*readings(5), alarm("one")])
    box._opened().execute("DROP INDEX idx_frame_lane_level_first")
    box._opened().execute("PRAGMA user_version = 1")
    box.close()
    assert texts(drain(make())) == ["one", "0", "1", "2", "3", "4"]


def test_a_rotten_frame_is_counted_and_left_out(make: Make) -> None:
    box = make()
    box.turn(readings(3))
    box.turn(readings(3, 3))
    box._opened().execute("UPDATE frame SET data = X'00000000ff' WHERE id = 1")
    box.close()
    box = make()
    assert texts(drain(box)) == ["3", "4", "5"]
    assert box.books().dropped == {"rotten": 3}
    assert balance(box)


def test_a_damaged_file_is_set_aside_and_numbers_begin_under_another_name(make: Make) -> None:
    box = make()
    box.turn(readings(3))
    before = box.identity
    box.close()
    box.path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(DamagedError):
        box.turn(want=1)
    assert box.set_aside(5_000_000_000).name.endswith(".damaged-5")
    box.turn(readings(1))
    assert box.identity != before
    assert texts(drain(box)) == ["0"]


STEP = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(st.sampled_from(Lane), st.integers(0, 2)), max_size=8)),
    st.tuples(st.just("send"), st.integers(1, 6)),
    st.tuples(st.just("again"), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_nothing_is_lost_doubled_or_out_of_order(
    blank: bytes, tmp_path_factory: pytest.TempPathFactory, steps: object
) -> None:
    path = tmp_path_factory.mktemp("model") / "outbox.sqlite"
    path.write_bytes(blank)
    box, serial = Outbox(path, PLENTY), 0
    added: list[tuple[Lane, str]] = []
    got: list[Parcel] = []
    under_way: list[Parcel] = []
    assert isinstance(steps, list)
    for what, how in [*steps, *[("send", 50)] * 3]:
        if what == "add":
            entries = []
            for lane, key in how:
                serial += 1
                name = f"{lane.name}/{key}" if lane in parcels.SINGLE else ""
                entries.append(Entry(lane, f"t{key}", str(serial).encode(), name))
                added.append((lane, str(serial)))
            box.turn(entries)
        elif what == "send":
            got += under_way
            under_way = box.turn(confirmed=settled(under_way) if under_way else NOTHING, want=how)
        else:
            box.close()  # a crash: what was under way is sent again
            box, under_way = Outbox(path, PLENTY), []
        assert balance(box)
    box.close()
    marks: Counter[Lane] = Counter()
    for one in got:
        assert one.seq > marks[one.lane]
        assert one.prev == marks[one.lane]
        marks[one.lane] = one.seq
    for lane in Lane:
        sent = texts([one for one in got if one.lane is lane])
        wanted = [text for which, text in added if which is lane]
        if lane is Lane.STATE:
            assert set(sent) <= set(wanted)
        else:
            assert sorted(sent, key=int) == wanted
        if lane not in parcels.SINGLE:
            assert sent == wanted


@given(
    st.lists(st.tuples(st.sampled_from(Lane), st.integers(0, 6), st.integers(1, 9000)), max_size=20),
    st.integers(0, 9000),
    st.sampled_from(["thin", "drop-oldest", "drop-newest"]),
)
def test_only_readings_and_scores_give_way_and_readings_first(
    rows: list[tuple[Lane, int, int]], excess: int, policy: thinning.WhenFull
) -> None:
    frames = [Facts(key, lane, level, entries, entries) for key, (lane, level, entries) in enumerate(rows)]
    step = thinning.choose(frames, policy, excess)
    yielding = {frame.lane for frame in frames} & {Lane.SCORE, Lane.READING}
    assert (step is None) == (not yielding)
    if step is None:
        return
    lanes = {frames[key].lane for key in step.frames}
    assert len(lanes) == 1
    if isinstance(step, Halve):
        assert policy == "thin"
        assert all(frames[key].level < thinning.MAX_LEVEL for key in step.frames)
    else:
        assert isinstance(step, Drop)
        assert lanes == {max(yielding)}
        sizes = [frames[key].size for key in step.frames]
        assert sum(sizes[:-1]) < max(excess, 1)
        assert sum(sizes) >= excess or len(sizes) == sum(frame.lane in lanes for frame in frames)


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_halving_keeps_the_half_of_each_topic(topics: list[str]) -> None:
    left = thinning.halve(Load(list(topics), [topic.encode() for topic in topics]), range(len(topics)))
    assert Counter(left.topics) == {topic: (count + 1) // 2 for topic, count in Counter(topics).items()}
    assert left.seqs == sorted(left.seqs or [])
    assert [topics[seq] for seq in left.seqs] == left.topics
