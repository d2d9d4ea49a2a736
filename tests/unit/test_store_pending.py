"""What waits for a commit: bounded, and every refusal has its reason."""

from array import array
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import EventError
from appliance.events.codec import REASONS as CODEC_REASONS
from appliance.events.schema import Block, Reading
from appliance.store.pending import MAX_BYTES, REASONS, Load, Pending

NOW = 1_700_000_000_000_000_000
DAY = 86_400_000_000_000


def pending(max_assets: int = 100) -> Pending:
    return Pending(max_assets, 365 * DAY)


def refusal(add: Callable[..., None], *arguments: object) -> str:
    """Under which reason, empty where it is taken."""
    try:
        add(*arguments)
    except EventError as error:
        return error.reason
    return ""


def recorded(loads: list[Load]) -> list[tuple[str, int, dict[str, float]]]:
    found = []
    for load in loads:
        for asset, part in load.commit.parts:
            values, width = array("d", part.values), len(part.points)
            for row, at in enumerate(array("q", part.times)):
                found.append((asset, at, dict(zip(part.points, values[row * width : (row + 1) * width], strict=True))))
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b/c"]),
            st.integers(NOW, NOW + 20),
            st.dictionaries(st.sampled_from("xyz"), st.floats(-9, 9), min_size=1),
        )
    ),
    st.integers(1, 2000),
)
def test_all_that_is_taken_comes_out_once(given_: list[tuple[str, int, dict[str, float]]], size: int) -> None:
    waiting = pending()
    taken: list[tuple[str, int, dict[str, float]]] = []
    for asset, at, values in given_:
        if refusal(waiting.add, asset, Reading(at, values), NOW):
            assert any((asset, at, set(values)) == (a, t, set(v)) for a, t, v in taken)
        else:
            taken.append((asset, at, values))
    assert waiting.rows == len(taken)
    loads = waiting.take(size)
    assert Counter(map(repr, sorted(recorded(loads), key=repr))) == Counter(map(repr, sorted(taken, key=repr)))
    for asset in ("a", "b/c"):  # in order of arrival
        assert [row for row in recorded(loads) if row[0] == asset] == [row for row in taken if row[0] == asset]
    for load in loads:
        waiting.settle(load)
    assert (waiting.rows, waiting.waiting) == (0, False)


def test_a_repeat_is_refused_even_after_a_commit_and_a_new_point_is_not() -> None:
    waiting = pending()
    waiting.add("a", Reading(NOW, {"x": 1.0}), NOW)
    waiting.take(1000)
    assert refusal(waiting.add, "a", Reading(NOW, {"x": 2.0}), NOW) == "duplicate"
    waiting.add("a", Reading(NOW, {"y": 2.0}), NOW)
    assert recorded(waiting.take(1000)) == [("a", NOW, {"y": 2.0})]


def test_assets_are_bounded_and_make_room_when_forgotten() -> None:
    waiting = pending(max_assets=2)
    waiting.know(["old"])
    waiting.add("a", Reading(NOW, {"x": 1.0}), NOW)
    assert refusal(waiting.add, "b", Reading(NOW, {"x": 1.0}), NOW) == "too-many-assets"
    waiting.forget(["old", "a", "unheard-of"])  # readings of a are waiting: it stays
    assert waiting.assets == 1
    waiting.add("b", Reading(NOW, {"x": 1.0}), NOW)


@pytest.mark.parametrize(("unavailable", "reason"), [(False, "overrun"), (True, "store-unavailable")])
def test_what_waits_is_bounded_until_it_is_settled(unavailable: bool, reason: str) -> None:
    waiting = pending(max_assets=1_000_000)
    waiting.unavailable = unavailable
    added, said = 0, ""
    while not (said := refusal(waiting.add, f"asset-{added}", Reading(NOW, {"x": 1.0}), NOW)):
        added += 1
    assert said == reason
    assert MAX_BYTES // 1000 < added < MAX_BYTES // 100
    loads = waiting.take(1 << 20)
    assert len(recorded(loads)) == added
    assert refusal(waiting.add, "one-more", Reading(NOW, {"x": 1.0}), NOW) == reason
    waiting.settle(loads[0])
    waiting.add("one-more", Reading(NOW, {"x": 1.0}), NOW)


def test_a_flood_of_names_is_bounded_too() -> None:
    waiting, added, said = pending(), 0, ""
    while not said:
        names = {f"{added}-{point}".ljust(100, "x"): 0.0 for point in range(100)}
        said = refusal(waiting.add, "a", Reading(NOW + added, names), NOW)
        added += 1
    assert said == "overrun"
    assert added < MAX_BYTES / (100 * 100)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [(Reading(NOW - 366 * DAY, {"x": 1.0}), "expired"), (Reading(NOW, {"a\nb": 1.0}), "point-name")],
)
def test_refusals(reading: Reading, reason: str) -> None:
    waiting = pending()
    assert refusal(waiting.add, "a", reading, NOW) == reason
    assert reason in REASONS | CODEC_REASONS
    assert not waiting.waiting


def test_blocks_wait_and_are_bounded() -> None:
    waiting, block = pending(), Block(NOW, 1000.0, {"x": array("f", bytes(1 << 20))})
    reasons = [refusal(waiting.add_block, "a", block) for _ in range(100)]
    assert set(reasons) == {"", "overrun"}
    loads = waiting.take(1 << 18)
    assert len(loads) == MAX_BYTES // (1 << 20)
    assert all(load.commit.blocks == [("a", block)] and load.commit.rows == 1 for load in loads)


def test_nonsense_takes_no_asset_s_place() -> None:
    waiting = pending(max_assets=1)
    for number in range(3):
        assert refusal(waiting.add, f"r{number}", Reading(NOW, {"": 1.0}), NOW) == "point-name"
        assert refusal(waiting.add_block, f"b{number}", Block(NOW, 1.0, {"": array("f", [1.0])})) == "point-name"
    assert waiting.assets == 0
    assert refusal(waiting.add, "good", Reading(NOW, {"x": 1.0}), NOW) == ""
