"""What the benchmarks compute from what they measure."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.benchmarks import load, pipeline, wire
from tools.benchmarks.figures import Goal, highest, percentile
from tools.benchmarks.process import Stat, below, parse_rss, parse_stat

LADDER = (1, 2, 5, 10, 20, 50)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 5), (0.9, 9), (0.99, 10), (1.0, 10)])
def test_a_percentile_is_one_of_the_values(share: float, value: int) -> None:
    assert percentile([7, 1, 9, 3, 10, 5, 2, 8, 4, 6], share) == value


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@pytest.mark.parametrize(("limit", "found"), [(0, 0), (1, 1), (4, 2), (5, 5), (49, 20), (1000, 50)])
def test_the_highest_step_that_holds(limit: int, found: int) -> None:
    tried: list[int] = []

    def holds(step: int) -> bool:
        tried.append(step)
        return step <= limit

    assert highest(LADDER, holds) == found
    assert len(tried) <= 3


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("speed", 15, 15.0), True),
        (Goal("speed", 15, 14.9), False),
        (Goal("memory", 35, 35.0, at_most=True), True),
        (Goal("memory", 35, 35.1, at_most=True), False),
        (Goal("speed", 15, None), None),
    ],
)
def test_goals(goal: Goal, met: bool | None) -> None:
    assert goal.met is met
    assert goal.plain()["met"] is met
    assert ("MISSED" in goal.line()) is (met is False)


def test_a_process_is_read_whatever_its_name_is() -> None:
    numbers = " ".join(str(field) for field in range(4, 53))
    assert parse_stat(f"42 (a) b (c) S {numbers}\n") == Stat(42, 4, 14 + 15 + 16 + 17)


def test_resident_memory() -> None:
    assert parse_rss("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t  1234 kB\n") == 1234
    assert parse_rss("Name:\tzombie\n") == 0


def test_the_tree_below_a_process() -> None:
    stats = [Stat(1, 0, 0), Stat(9, 7, 0), Stat(7, 5, 0), Stat(5, 1, 0), Stat(6, 1, 0)]
    assert [stat.pid for stat in below(5, stats)] == [5, 7, 9]


@given(st.lists(st.tuples(st.text("ab/", min_size=1), st.binary(max_size=300)), max_size=5), st.integers(1, 50))
def test_packets_are_found_however_they_are_cut(messages: list[tuple[str, bytes]], step: int) -> None:
    stream = b"".join(wire.publish(topic, payload) for topic, payload in messages)
    buffer, bodies = bytearray(), list[bytes]()
    for start in range(0, len(stream), step):
        buffer += stream[start : start + step]
        bodies += [body for first, body in wire.split(buffer) if first == 0x30]
    assert bodies == [len(topic).to_bytes(2, "big") + topic.encode() + payload for topic, payload in messages]
    assert not buffer


@pytest.fixture(scope="module")
def pool() -> load.Pool:
    return load.Pool()


def test_the_load_is_what_the_benchmark_says_it_is() -> None:
    rows = [json.loads(payload) for payload in load.payloads(7)]
    assert len(rows) == load.PERIOD
    assert {tuple(row) for row in rows} == {tuple(f"c{channel:02d}" for channel in range(load.CHANNELS))}
    assert pipeline.MODEL_EVERY % load.HOP == 0
    assert 190 < sum(map(len, load.payloads(7))) / load.PERIOD < 215


@pytest.mark.parametrize("ends", [(0, 3), (98, 104), (-2, 3)], ids=["first", "next row", "next period"])
def test_messages_of_the_load_follow_each_other_for_ever(pool: load.Pool, ends: tuple[int, int]) -> None:
    first, end = (pool.size + end for end in ends)
    sent = bytearray(b"".join(pool.packets(first, end)))
    assets = [int(body[2 : 2 + body[1]][-2:]) for _, body in wire.split(sent)]
    assert assets == [number % load.ASSETS for number in range(first, end)]


@pytest.mark.parametrize(
    ("run", "judged"), [(load.Run(sent=170, expected=10, scores=10), 170), (load.Run(170, 10, scores=4), 64)]
)
def test_what_got_lost_was_not_judged(run: load.Run, judged: int) -> None:
    assert run.judged == judged
