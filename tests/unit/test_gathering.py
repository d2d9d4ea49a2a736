"""When readings that were taken are judged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.services.gathering import ENOUGH, GATHER_S, LONGEST_PAUSE_S, TOGETHER, Gathering

START_S = 0.0


def judged(took_s: float = 0.0) -> Gathering:
    """As of START_S, in a process that has done nothing else."""
    gathering = Gathering()
    gathering.took(1, START_S)
    gathering.begun()
    gathering.judged(took_s, took_s, START_S)
    return gathering


def test_the_first_reading_after_a_pause_is_judged_at_once() -> None:
    assert Gathering().took(1, START_S)
    assert judged().took(1, START_S + GATHER_S)


def test_a_few_readings_wait_for_others() -> None:
    gathering = judged()
    assert not gathering.took(1, START_S + GATHER_S / 2)
    assert not gathering.took(ENOUGH - 2, START_S + GATHER_S / 2)
    assert gathering.took(1, START_S + GATHER_S / 2)


def pause_s(took_s: float, spent_s: float, lapse_s: float) -> float:
    """After many judgements of which each took `took_s`, while the process spent `spent_s` in `lapse_s`."""
    gathering, now = Gathering(), START_S
    for turn in range(1, 50):
        now += lapse_s
        gathering.begun()
        gathering.judged(took_s, turn * spent_s, now)
    return next(step / 1e5 for step in range(10_000) if gathering.took(0 if step else ENOUGH, now + step / 1e5))


def test_an_idle_process_hardly_waits() -> None:
    assert pause_s(0.001, 0.001, 1.0) <= 0.00001


def test_the_busier_it_is_the_more_is_gathered() -> None:
    half, much = pause_s(0.001, 0.005, 0.01), pause_s(0.001, 0.009, 0.01)
    assert half == pytest.approx(0.001, rel=0.05)
    assert much == pytest.approx(0.009, rel=0.05)
    assert pause_s(0.1, 0.1, 0.1) == pytest.approx(LONGEST_PAUSE_S, rel=0.05)


def test_a_ring_of_samples_has_an_end() -> None:
    gathering, busy_until = judged(), START_S + 1.0
    gathering.begun()
    gathering.judged(1.0, 1.0, busy_until)
    assert not gathering.took(TOGETHER - 1, busy_until)
    assert gathering.took(1, busy_until)


@given(st.floats(0.0, 10.0), st.integers(1, TOGETHER))
def test_nothing_waits_for_ever(took_s: float, messages: int) -> None:
    gathering = judged(took_s)
    assert gathering.took(messages, START_S + max(GATHER_S, LONGEST_PAUSE_S))


def test_what_was_judged_waits_no_longer() -> None:
    gathering = Gathering()
    gathering.took(5, START_S)
    assert gathering.waiting == 5
    gathering.begun()
    gathering.judged(0.0, 0.0, START_S)
    assert gathering.waiting == 0


def test_what_comes_while_a_judgement_is_told_waits_for_the_next() -> None:
    gathering = Gathering()
    gathering.took(5, START_S)
    gathering.begun()
    gathering.took(3, START_S)  # an alarm is being written down meanwhile
    gathering.judged(0.0, 0.0, START_S)
    assert gathering.waiting == 3
