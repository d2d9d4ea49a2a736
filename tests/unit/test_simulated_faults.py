"""The simulated pump before the real detector: quiet in health, an alarm that names the channel when a fault begins.

At 10 readings a second: 400 rows to learn from are 40 s.
"""

from collections.abc import Iterator

import pytest

from appliance.connectors._pump import SHOWS, Pump
from appliance.events.schema import Reading, Score
from appliance.inference.detector.detector import Detector, DetectorSettings

DT_S = 3.0  # of the pump's life at 10 Hz and the default time scale
RATE_HZ = 10
RAMP = 100  # rows: 10 s
BEFORE = 700  # rows of health, those to learn from included


def judged(seed: int, rows: int, fault: str = "") -> Iterator[tuple[int, Score]]:
    """Each row and its score; the fault begins after BEFORE rows."""
    pump, detector = Pump(seed), Detector(DetectorSettings())
    for row in range(rows):
        grown = min(1.0, max(0.0, (row - BEFORE) / RAMP))
        values = pump.step(DT_S, {fault: grown} if fault else {})
        detector.push("demo/pump", Reading(row * 10**9 // RATE_HZ, values))
        for _, score in detector.judge():
            yield row, score


@pytest.mark.parametrize("seed", range(20))
def test_ten_minutes_of_health_raise_no_alarm(seed: int) -> None:
    scores = list(judged(seed, 600 * RATE_HZ))
    assert len(scores) > 500 * RATE_HZ
    assert [row for row, score in scores if score.alarm] == []


@pytest.mark.parametrize("fault", SHOWS)
@pytest.mark.parametrize("seed", range(1, 5))
def test_every_fault_is_an_alarm_within_twenty_seconds(seed: int, fault: str) -> None:
    alarms = [(row, score) for row, score in judged(seed, BEFORE + 20 * RATE_HZ, fault) if score.alarm]
    assert alarms, f"{fault} went unnoticed"
    row, score = alarms[0]
    assert row > BEFORE
    assert score.cause in SHOWS[fault]


@pytest.mark.parametrize("fault", SHOWS)
def test_the_cause_stays_right_while_the_fault_lasts(fault: str) -> None:
    causes = [score.cause for _, score in judged(1, BEFORE + 30 * RATE_HZ, fault) if score.alarm]
    right = sum(cause in SHOWS[fault] for cause in causes)
    assert right > len(causes) / 2
