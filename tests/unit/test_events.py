"""Topics and payloads: round trips, the short forms people type, and everything that is refused."""

import functools
import json
import math
from array import array
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import (
    Alarm,
    AlarmState,
    Audit,
    Block,
    Command,
    CommandState,
    Event,
    Kind,
    Reading,
    Score,
    Severity,
    Stage,
    State,
)

Result = TypeVar("Result")

NOW = 1_800_000_000_000_000_000
DAY = 86_400_000_000_000

LEVEL = st.text("abcxyz0189_.-", min_size=1, max_size=12)
ASSET = st.lists(LEVEL, min_size=1, max_size=8).map("/".join)
POINT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: name not in ("at", "values"))
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TIME = st.integers(codec.EARLIEST, NOW)
READING = st.builds(Reading, at=TIME, values=st.dictionaries(POINT, NUMBER, min_size=1, max_size=20))
SAMPLES = st.integers(1, 50).flatmap(
    lambda n: st.dictionaries(
        POINT, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=n, max_size=n), min_size=1
    )
)
BLOCK = st.builds(
    Block,
    at=TIME,
    rate=st.floats(0.001, 1e6),
    values=SAMPLES.map(lambda points: {name: array("f", samples) for name, samples in points.items()}),
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
PLAIN = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT, max_size=4)
OTHERS: dict[Kind, st.SearchStrategy[Event]] = {
    Kind.SCORE: st.builds(
        Score, at=TIME, score=NUMBER, threshold=NUMBER, stage=st.sampled_from(Stage), cause=TEXT, alarm=st.booleans()
    ),
    Kind.ALARM: st.builds(
        Alarm,
        id=TEXT,
        at=TIME,
        raised=TIME,
        state=st.sampled_from(AlarmState),
        severity=st.sampled_from(Severity),
        cause=TEXT,
        score=NUMBER,
        threshold=NUMBER,
        message=TEXT,
    ),
    Kind.STATE: st.builds(State, at=TIME, online=st.booleans(), dropped=st.dictionaries(TEXT, st.integers(0, 2**60))),
    Kind.COMMAND: st.builds(Command, at=TIME, state=st.sampled_from(CommandState), args=PLAIN, result=PLAIN),
    Kind.AUDIT: st.builds(Audit, at=TIME, actor=TEXT, action=TEXT, subject=TEXT, outcome=TEXT, detail=PLAIN),
}


def attempt(decide: Callable[[], Result]) -> tuple[str, Result | None]:
    """The reason of a refusal, or what was decided."""
    try:
        return "", decide()
    except EventError as error:
        return error.reason, None


def reason_of(kind: Kind, payload: bytes) -> str:
    with pytest.raises(EventError) as refused:
        codec.decode(kind, payload, NOW)
    assert refused.value.reason in codec.REASONS
    return refused.value.reason


@given(st.sampled_from(Kind), ASSET)
def test_a_topic_round_trips(kind: Kind, asset: str) -> None:
    assert topics.parse(topics.topic(kind, asset)) == (kind, asset)


@given(st.text(max_size=60) | st.text("mw/v1readingaA#+ ", max_size=40))
def test_any_text_is_a_topic_or_is_refused(text: str) -> None:
    refusal, address = attempt(lambda: topics.parse(text))
    assert refusal == "topic" if address is None else topics.topic(*address) == text


@pytest.mark.parametrize(
    "text",
    [
        "mw/v1/reading",
        "mw/v1/reading/",
        "mw/v1/reading/A",
        "mw/v1/reading/a//b",
        "mw/v1/reading/a/",
        "mw/v1/reading/1/2/3/4/5/6/7/8/9",
        "mw/v1/reading/" + "a" * 241,
        "mw/v1/reading/a\n",
        "mw/v2/reading/a",
        "mw/v1/gossip/a",
        "reading/a",
    ],
)
def test_topics_that_break_the_grammar(text: str) -> None:
    with pytest.raises(EventError):
        topics.parse(text)


@given(READING)
def test_a_reading_round_trips_in_both_forms(reading: Reading) -> None:
    assert codec.decode_reading(codec.encode(reading), NOW) == reading
    assert codec.decode_reading(codec.encode_json(reading), NOW) == reading


@given(BLOCK)
def test_a_block_round_trips_in_both_forms(block: Block) -> None:
    assert codec.decode_block(codec.encode(block), NOW) == block
    assert codec.decode_block(codec.encode_json(block), NOW) == block


@pytest.mark.parametrize("kind", OTHERS)
@given(data=st.data())
def test_every_other_event_round_trips_in_both_forms(kind: Kind, data: st.DataObject) -> None:
    event = data.draw(OTHERS[kind])
    assert codec.decode(kind, codec.encode(event), NOW) == event
    assert codec.decode(kind, codec.encode_json(event), NOW) == event


@given(OTHERS[Kind.SCORE] | st.just(Score(0, 1.0, 2.0, Stage.LEARNING)))
def test_scores_are_encoded_as_anything_is(score: Event) -> None:
    assert codec.encode(score) == cbor2.dumps(msgspec.to_builtins(score))


@pytest.mark.parametrize(
    "payload",
    [b'{"temperature": 61.2}', b' {"temperature": 61.2}', cbor2.dumps({"temperature": 61.2})],
    ids=["json", "json after a blank", "cbor"],
)
def test_what_people_type(payload: bytes) -> None:
    assert codec.decode_reading(payload, NOW) == Reading(NOW, {"temperature": 61.2})


@pytest.mark.parametrize(
    ("payload", "reading"),
    [
        (b'{"at": 1700000000000000000, "t": 1}', Reading(1_700_000_000_000_000_000, {"t": 1.0})),
        (b'{"at": "2023-11-14T22:13:20Z", "t": 1}', Reading(1_700_000_000_000_000_000, {"t": 1.0})),
        (b'{"at": "2023-11-14T22:13:20", "values": {"t": 1}}', Reading(1_700_000_000_000_000_000, {"t": 1.0})),
    ],
)
def test_times_people_give(payload: bytes, reading: Reading) -> None:
    assert codec.decode_reading(payload, NOW) == reading


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"{", "malformed"),
        (b'{"a": NaN}', "malformed"),
        (b'{"a": 1} tail', "malformed"),
        (b'{"\xff": 1}', "malformed"),
        (b"\xbf", "malformed"),
        (b"hello", "malformed"),
        (b'{"a": 1e999}', "not-finite"),
        (b'{"a": "61.2"}', "not-a-number"),
        (b'{"a": true}', "not-a-number"),
        (b'{"a": null}', "not-a-number"),
        (b'{"a": {"b": 1}}', "not-a-number"),
        (b"{}", "empty"),
        (b'{"values": {}}', "empty"),
        (b'{"values": 3}', "not-a-number"),
        (b'{"at": 17, "values": {"a": 1}}', "time-past"),
        (b'{"at": 1.5, "a": 1}', "shape"),
        (b'{"at": "yesterday", "a": 1}', "shape"),
        (cbor2.dumps([1]), "shape"),
        (cbor2.dumps({"a": math.nan}), "not-finite"),
        (cbor2.dumps({"a": math.inf, "b": -math.inf}), "not-finite"),
        (cbor2.dumps({"a": "x"}), "not-a-number"),
        (cbor2.dumps({"a": True}), "not-a-number"),
        (cbor2.dumps({1: 2}), "point-name"),
        (cbor2.dumps({"a": 2**2000}), "not-finite"),
        (cbor2.dumps({}), "empty"),
        (cbor2.dumps({"values": {f"p{i}": i for i in range(1025)}}), "too-many-points"),
        (json.dumps({"at": NOW + DAY + 1, "a": 1}).encode(), "time-future"),
    ],
)
def test_readings_that_are_refused(payload: bytes, reason: str) -> None:
    assert reason_of(Kind.READING, payload) == reason


def test_huge_values_whose_sum_overflows_are_finite() -> None:
    values = {"a": 1.7e308, "b": 1.7e308}
    assert codec.decode_reading(codec.encode(Reading(NOW, values)), NOW).values == values


def packed(*samples: float) -> cbor2.CBORTag:
    return cbor2.CBORTag(85, array("f", samples).tobytes())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rate": 10.0, "values": {}}, "empty"),
        ({"rate": 10.0, "values": {"a": packed()}}, "empty"),
        ({"rate": 10.0, "values": {"a": packed(1), "b": packed(1, 2)}}, "shape"),
        ({"rate": 10.0, "values": {"a": [1.0]}}, "not-a-number"),
        ({"rate": 10.0, "values": {"a": cbor2.CBORTag(85, b"123")}}, "shape"),
        ({"rate": 10.0, "values": {"a": packed(math.nan)}}, "not-finite"),
        ({"rate": 0.0, "values": {"a": packed(1)}}, "shape"),
        ({"rate": math.inf, "values": {"a": packed(1)}}, "shape"),
        ({"values": {"a": packed(1)}}, "not-a-number"),
        ({"rate": 10.0, "values": {"a": packed(*[0.0] * (codec.MAX_SAMPLES + 1))}}, "too-many-points"),
    ],
)
def test_blocks_that_are_refused(fields: dict[str, Any], reason: str) -> None:
    assert reason_of(Kind.BLOCK, cbor2.dumps(fields)) == reason


@given(st.sampled_from(Kind), st.binary(max_size=200))
def test_any_bytes_are_an_event_or_are_refused_with_a_known_reason(kind: Kind, payload: bytes) -> None:
    refusal, event = attempt(lambda: codec.decode(kind, payload, NOW))
    assert event is not None or refusal in codec.REASONS


@given(st.sampled_from(Kind), READING, st.data())
def test_a_damaged_message_is_an_event_or_is_refused(kind: Kind, reading: Reading, data: st.DataObject) -> None:
    payload = bytearray(codec.encode(reading))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    refusal, event = attempt(lambda: codec.decode(kind, bytes(payload), NOW))
    assert event is not None or refusal in codec.REASONS


CBOR_BOMBS = {
    "deep": b"\x81" * 100_000 + b"\x00",
    "a length that lies": b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "a big exponent": cbor2.dumps(cbor2.CBORTag(4, [10**9, 1])),
    "a cycle": b"\xd8\x1c\xa1aa\xd8\x1d\x00",
    "a pattern": cbor2.dumps(cbor2.CBORTag(35, "(a+)+$" * 10)),
}


@pytest.mark.parametrize("bomb", CBOR_BOMBS.values(), ids=list(CBOR_BOMBS))
@pytest.mark.parametrize("kind", Kind)
def test_bombs_are_refused(kind: Kind, bomb: bytes) -> None:
    assert reason_of(kind, bomb)


def test_point_names() -> None:
    codec.check_points(["Volume Flow RateRMS", "温度", "a" * 128])
    for name in ("", "a" * 129, "a\nb", "\x00"):
        with pytest.raises(EventError, match="cannot name a point"):
            codec.check_points(["good", name])


def test_the_books_balance() -> None:
    ledger = Ledger()
    ledger.received = 5
    ledger.processed = 2
    ledger.drop("empty")
    ledger.refuse(EventError("malformed", "CBOR: end of input"))
    assert (ledger.queued, ledger.dropped) == (1, {"empty": 1, "malformed": 1})
    assert ledger.examples == {"malformed": "CBOR: end of input"}


def holding_itself() -> dict[str, Any]:
    args: dict[str, Any] = {}
    args["again"] = args
    return args


def holding_millions() -> list[Any]:
    inner = [1] * 2000
    return [inner] * 2000


@pytest.mark.parametrize(
    "odd",
    [
        cbor2.CBORTag(1000, "a"),
        cbor2.undefined,
        cbor2.CBORSimpleValue(99),
        frozenset({1}),
        b"bytes",
        {1: 2},
        {"deep": [{"deeper": datetime(2026, 1, 1, tzinfo=UTC)}]},
        holding_itself(),
        holding_millions(),
        functools.reduce(lambda inner, _: [inner], range(40), 1),
    ],
)
def test_a_command_carries_plain_values_only(odd: object) -> None:
    fields = {"at": NOW, "state": "init", "args": {"alarm": odd}}
    with pytest.raises(EventError) as refused:
        codec.decode(Kind.COMMAND, cbor2.dumps(fields, value_sharing=True), NOW)
    assert refused.value.reason == "shape"


@given(PLAIN)
def test_whatever_a_command_carries_can_be_said_again(args: dict[str, Any]) -> None:
    command = codec.decode(Kind.COMMAND, cbor2.dumps({"at": NOW, "state": "init", "args": {"a": [args]}}), NOW)
    assert codec.decode(Kind.COMMAND, codec.encode(command), NOW) == command


@given(ASSET, st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True))
def test_an_alarm_of_another_condition_has_a_topic_that_no_asset_has(asset: str, condition: str) -> None:
    topic = topics.alarm(asset, condition)
    assert topics.parse(topic) == (Kind.ALARM, asset)
    assert topics.condition(topic) == condition
    if condition != "anomaly":
        with pytest.raises(EventError):
            topics.parse(topic.replace("alarm", "score", 1))


def test_an_example_of_what_was_refused_names_its_topic() -> None:
    ledger = Ledger()
    ledger.refuse(EventError("malformed", "CBOR: end of input"), "mw/v1/reading/line1/pump")
    ledger.refuse(EventError("topic", "'mw/v1/gossip' is none"), "mw/v1/gossip")
    assert ledger.examples == {
        "malformed": "mw/v1/reading/line1/pump: CBOR: end of input",
        "topic": "'mw/v1/gossip' is none",
    }
