"""What a batch brings is taken the same way, however large the batch is in which it comes."""

import json
import random

import pytest

from appliance.bus.port import Message
from appliance.events.ledger import Ledger
from appliance.inference.detector.detector import Detector, DetectorSettings, Judged
from appliance.services.intake import MANY, SEVERAL, Intake

START = 1_700_000_000_000_000_000
TENTH = 100_000_000  # ns
ASSETS, ROWS = 6, 300
LOT, SMALL = 2 * MANY, MANY // 4  # messages; LOT holds more than SEVERAL of each asset
assert LOT >= 2 * SEVERAL * ASSETS
OTHERS = [
    b"",
    b"{",
    b'{"a":"high"}',
    b'{"a":1e999,"b":0}',
    b'{"at":1,"values":{"a":1}}',
    b'{"a":1,"b":2,"c":3}',
    b'{"b":4}',
]


def flood(odd: float) -> list[Message]:
    """Readings of all assets in turn, of which a share is something else."""
    rng = random.Random(11)
    return [
        Message(f"mw/v1/reading/site/a{number % ASSETS}", rng.choice(OTHERS) if rng.random() < odd else plain(rng))
        for number in range(ASSETS * ROWS)
    ]


def plain(rng: random.Random) -> bytes:
    return json.dumps({"a": rng.gauss(0, 1), "b": rng.gauss(5, 2)}).encode()


Outcome = list[tuple[str, int, float, bool]]


def taken(messages: list[Message], size: int) -> tuple[Ledger, Outcome]:
    """The books and all judgements, after batches of so many messages; LOT of them in a tenth of a second."""
    ledger, detector = Ledger(), Detector(DetectorSettings())
    intake, judged = Intake(detector, ledger), list[Judged]()
    for start in range(0, len(messages), size):
        tenth, rest = divmod(start, LOT)
        intake.take(messages[start : start + size], START + tenth * TENTH + rest)
        judged += detector.judge()
    return ledger, sorted((asset, score.rows, score.score, score.alarm) for asset, score in judged)


def test_readings_that_are_alike_are_judged_the_same_in_batches_of_any_size() -> None:
    messages = flood(0.0)
    ledger, judged = taken(messages, LOT)
    assert ledger.processed == ledger.received == len(messages)
    assert len(judged) == ASSETS * (ROWS - DetectorSettings().collect_rows)
    assert judged == taken(messages, SMALL)[1]


@pytest.mark.parametrize("odd", [0.005, 0.05])
def test_what_is_odd_among_them_is_refused_or_taken_as_when_it_comes_alone(odd: float) -> None:
    messages = flood(odd)
    together, judged = taken(messages, LOT)
    alone, expected = taken(messages, SMALL)
    assert together.received == len(messages)
    assert together.queued == 0
    assert together.dropped == alone.dropped
    assert "malformed" in together.dropped
    assert judged == expected


def test_a_batch_of_which_some_topics_are_new_is_taken_whole() -> None:
    messages = flood(0.0)
    strangers = [Message(f"mw/v1/reading/site/b{number}", b'{"a":1}') for number in range(20)]
    ledger, _ = taken(messages[:MANY] + strangers + messages[MANY:], LOT)
    assert ledger.processed == len(messages) + len(strangers)
