"""How an installation is told as it goes."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appliance.bus.port import Message
from appliance.cli.following import Followed, Measure, Pace, far, stepped
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState, State

SECOND = 1_000_000_000


def one(step: str = "downloading", **more: Any) -> dict[str, Any]:
    return {"id": "a1", "bundle": "b" * 64, "step": step, "reason": "", "returning": False, "trail": [[step, 0]]} | more


def told(step: str, state: CommandState = CommandState.EXECUTING, **more: Any) -> Message:
    event = Command(0, state, {}, "", one(step, **more))
    return Message(topics.command("update", "install", "a1"), codec.encode(event), 1, True)


def state(service: str, **detail: Any) -> Message:
    return Message(topics.state(service), codec.encode(State(0, True, detail=detail)), 1, True)


def test_a_rate_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    for second in range(100):
        pace.add(10.0 * second if second < 50 else 500.0 + 30.0 * (second - 50), float(second))
    assert pace.rate == 30.0
    assert pace.left_s(Measure(2000.0, 2300.0, "bytes")) == 10.0


def test_what_begins_anew_has_no_rate() -> None:
    pace = Pace()
    pace.add(100.0, 0.0)
    pace.add(200.0, 1.0)
    pace.add(0.0, 2.0)
    assert (pace.rate, pace.left_s(Measure(0.0, 100.0, "bytes"))) == (0.0, None)


@given(st.lists(st.tuples(st.floats(0.0, 1e12), st.floats(0.0, 5.0)), max_size=50))
def test_a_rate_is_never_below_zero(steps: list[tuple[float, float]]) -> None:
    pace, now = Pace(), 0.0
    for done, later in steps:
        now += later
        pace.add(done, now)
        assert pace.rate >= 0.0


def test_steps_are_heard_and_bytes_are_shown() -> None:
    followed = Followed(one(), 60, 0.0)
    assert followed.measure(0) is None
    followed.hear(state("update", progress={"bytes": 250_000, "of": 1_000_000}), 0)
    assert followed.measure(0) == Measure(250_000, 1_000_000, "bytes")
    followed.hear(told("verifying"), 0)
    assert (followed.step, followed.measure(0), followed.ended) == ("verifying", None, False)
    followed.hear(told("refused", CommandState.FAILED, reason="in shadow: agreement 0.2"), 0)
    assert followed.ended
    assert stepped(followed.one) == "refused: in shadow: agreement 0.2"


def test_others_are_not_followed() -> None:
    followed = Followed(one(), 60, 0.0)
    followed.hear(told("confirmed", CommandState.SUCCESSFUL, id="b2"), 0)
    followed.hear(Message(topics.command("update", "install", "x"), b"\xff", 1), 0)
    assert (followed.step, followed.ended) == ("downloading", False)


def test_a_comparison_is_shown_by_what_it_still_lacks() -> None:
    followed = Followed(one("shadow"), 60, 120.0)
    followed.hear(state("detect", choice={"comparison": {"bundle": "b" * 64, "looks": 45}}), 0)
    assert followed.measure(30 * SECOND) == Measure(30.0, 120.0, "s")
    assert followed.measure(110 * SECOND) == Measure(45, 60, "looks")
    followed.hear(state("detect", choice={"comparison": {"bundle": "c" * 64, "looks": 45}}), 0)
    assert followed.measure(110 * SECOND) == Measure(0, 60, "looks")


def test_it_is_told_in_words() -> None:
    pace = Pace()
    pace.add(0.0, 0.0)
    pace.add(1e6, 1.0)
    assert far(Measure(1e6, 5e6, "bytes"), pace) == "1.0 MB of 5.0 MB, 1.0 MB/s, 4 s left"
    assert far(Measure(30, 60, "looks"), Pace()) == "30 of 60 looks"
    assert far(Measure(30.0, 3600.0, "s"), Pace()) == "compared for 30 s of 60 min"
    assert stepped(one("promoted", returning=True, reason="worse")) == "going back: worse"
