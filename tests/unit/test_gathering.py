"""When readings that were taken are judged."""

from hypothesis import given
from hypothesis import strategies as st

from appliance.services.gathering import ENOUGH, GATHER_S, LONGEST_PAUSE_S, PAUSE, TOGETHER, Gathering

START_S = 0.0


def judged(took_s: float = 0.0) -> Gathering:
    gathering = Gathering()
    gathering.took(1, START_S)
    gathering.judged(took_s, START_S)
    return gathering


def test_the_first_reading_after_a_pause_is_judged_at_once() -> None:
    assert Gathering().took(1, START_S)
    assert judged().took(1, START_S + GATHER_S)


def test_a_few_readings_wait_for_others() -> None:
    gathering = judged()
    assert not gathering.took(1, START_S + GATHER_S / 2)
    assert not gathering.took(ENOUGH - 2, START_S + GATHER_S / 2)
    assert gathering.took(1, START_S + GATHER_S / 2)


def test_after_a_long_judgement_more_is_gathered() -> None:
    took_s = 0.003
    gathering = judged(took_s)
    assert not gathering.took(ENOUGH, START_S + PAUSE * took_s * 0.99)
    assert gathering.took(0, START_S + PAUSE * took_s * 1.01)


def test_a_ring_of_samples_has_an_end() -> None:
    gathering = judged(1.0)
    assert not gathering.took(TOGETHER - 1, START_S)
    assert gathering.took(1, START_S)


@given(st.floats(0.0, 10.0), st.integers(1, TOGETHER))
def test_nothing_waits_for_ever(took_s: float, messages: int) -> None:
    gathering = judged(took_s)
    assert gathering.took(messages, START_S + max(GATHER_S, LONGEST_PAUSE_S))


def test_what_was_judged_waits_no_longer() -> None:
    gathering = Gathering()
    gathering.took(5, START_S)
    assert gathering.waiting == 5
    gathering.judged(0.0, START_S)
    assert gathering.waiting == 0
