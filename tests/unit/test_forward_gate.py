"""What leaves: chosen, masked, in its envelope; and at which pace."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bus.port import Message
from appliance.channels.leaving import envelope, remedies
from appliance.channels.leaving.gate import Gate
from appliance.channels.leaving.pace import LARGEST, LAST_RETRY_S, Batches, Patience, Politeness
from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.schema import (
    Alarm,
    AlarmState,
    Audit,
    Event,
    Kind,
    Label,
    Reading,
    Score,
    Severity,
    Stage,
    State,
    Verdict,
)
from appliance.masking.finding import find
from appliance.masking.masker import Masker, Policy
from appliance.masking.tokens import SHAPE, Tokens
from appliance.store.parcels import Lane, Parcel

NOW = 1_790_000_000_000_000_000
ALL = [kind.value for kind in Kind if kind is not Kind.COMMAND]
PERSONAL = ["13800138000", "11010519491231002X", "anna.muster@example.org", "4111 1111 1111 1111", "+86 138-0013-8000"]


def gate(policy: Policy | None = None, kinds: list[str] | None = None, assets: list[str] | None = None) -> Gate:
    return Gate(kinds or ALL, assets or ["#"], Masker(policy or Policy()))


def message(kind: Kind, path: str, event: Event, qos: int = 1) -> Message:
    return Message(topics.topic(kind, path), codec.encode(event), qos)


def alarm(**fields: Any) -> Alarm:
    known = {"id": "a1", "at": NOW, "raised": NOW, "state": AlarmState.UNACKNOWLEDGED, "severity": Severity.ALARM}
    return Alarm(**{**known, "cause": "temperature", "score": 2.0, "threshold": 1.0, **fields})


# Masking

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
texts = st.tuples(words, st.sampled_from(["", *PERSONAL]), words).map(lambda parts: " ".join(parts)[:120])
names = texts.map(lambda text: text.strip() or "x")
paths = st.lists(
    st.from_regex(r"[a-z0-9_.-]{1,12}", fullmatch=True) | st.sampled_from(["13800138000", "4111-1111-1111-1111"]),
    min_size=1,
    max_size=4,
).map("/".join)
plain = st.recursive(
    texts | st.integers(-5, 5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
events = st.one_of(
    st.tuples(
        st.just(Kind.READING),
        st.builds(Reading, st.just(NOW), st.dictionaries(names, st.floats(-1e6, 1e6), min_size=1, max_size=5)),
    ),
    st.tuples(
        st.just(Kind.SCORE),
        st.builds(lambda cause, model: Score(NOW, 1.0, 2.0, Stage.ALARMING, cause=cause, model=model), texts, texts),
    ),
    st.tuples(
        st.just(Kind.ALARM),
        st.builds(
            lambda cause, by, said, which: alarm(id=which, cause=cause, by=by, message=said), texts, texts, texts, texts
        ),
    ),
    st.tuples(
        st.just(Kind.STATE),
        st.builds(lambda detail: State(NOW, True, detail=detail), st.dictionaries(texts, plain, max_size=3)),
    ),
    st.tuples(st.just(Kind.LABEL), st.builds(lambda by: Label(NOW, Verdict.FAULT, NOW, NOW, by=by), texts)),
    st.tuples(
        st.just(Kind.AUDIT),
        st.builds(
            lambda actor, subject, detail: Audit(NOW, actor, "open", subject, "done", detail),
            texts,
            texts,
            st.dictionaries(texts, plain, max_size=3),
        ),
    ),
)


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, part in value.items() for text in (key, *strings(part))]
    return [text for part in value for text in strings(part)] if isinstance(value, list) else []


def unmasked(text: str) -> list[str]:
    """Personal data that stands in it beside what was masked."""
    parts = SHAPE.sub("\n", text).split("\n")
    return [part[found.start : found.end] for part in parts for found in find(part)]


@settings(max_examples=300, deadline=None)
@given(events, paths, st.booleans())
def test_nothing_leaves_unmasked(event: tuple[Kind, Event], path: str, by_token: bool) -> None:
    kind, told = event
    policy = Policy(dict.fromkeys(("phone", "e-mail"), "token")) if by_token else Policy()
    door = Gate(ALL, ["#"], Masker(policy, Tokens(bytes(64))))
    for entry in door.entries([message(kind, path, told)], NOW):
        parcel = Parcel(entry.lane, 7, 6, entry.topic, entry.payload)
        left = [entry.topic, entry.key, *strings(json.loads(envelope.seal("0f", parcel)))]
        assert [found for text in left for found in unmasked(text)] == []
    assert door.ledger.dropped == {} or set(door.ledger.dropped) <= {"point-name", "topic", "shape"}


def test_the_policy_is_of_each_destination() -> None:
    told = [message(Kind.ALARM, "pump", alarm(message="call 13800138000", by="anna"))]
    kept, masked = gate(Policy({"phone": "keep"})), gate(Policy(fields={"by": "mask"}))
    assert json.loads(kept.entries(told, NOW)[0].payload)["message"] == "call 13800138000"
    fields = json.loads(masked.entries(told, NOW)[0].payload)
    assert (fields["message"], fields["by"]) == ("call <phone>", "<text>")
    assert masked.masker.count == {"phone": 1, "text": 1}


def test_a_masked_asset_is_found_again_where_it_is_the_only_one() -> None:
    door = gate()
    door.entries([message(Kind.READING, "line/13800138000", Reading(NOW, {"t": 1.0}))], NOW)
    assert door.real("line/<phone>") == "line/13800138000"
    door.entries([message(Kind.READING, "line/13900139000", Reading(NOW, {"t": 1.0}))], NOW)
    with pytest.raises(EventError):
        door.real("line/<phone>")


# Choosing


def test_kinds_and_assets_are_chosen() -> None:
    reading = Reading(NOW, {"t": 1.0})
    door = gate(kinds=["reading", "state"], assets=["line1/#", "line2/pump"])
    batch = [
        message(Kind.READING, path, reading)
        for path in ("line1", "line1/pump", "line2/pump", "line2/fan", "line10/pump")
    ]
    batch += [
        message(Kind.SCORE, "line1/pump", Score(NOW, 1.0, 2.0, Stage.ALARMING)),
        message(Kind.STATE, "record", State(NOW, True)),
    ]
    found = [entry.topic for entry in door.entries(batch, NOW)]
    assert found == ["reading/line1", "reading/line1/pump", "reading/line2/pump", "state/record"]


def test_lanes_and_keys() -> None:
    door = gate()
    batch = [
        message(Kind.ALARM, "pump", alarm()),
        message(Kind.STATE, "record", State(NOW, True)),
        message(Kind.SCORE, "pump", Score(NOW, 1.0, 2.0, Stage.ALARMING)),
        Message(topics.topic(Kind.READING, "pump"), b'{"t": 1}', 0),
    ]
    found = door.entries(batch, NOW)
    assert [(one.lane, one.key, bool(one.mark)) for one in found] == [
        (Lane.ALARM, "alarm/pump", True),
        (Lane.STATE, "state/record", False),
        (Lane.SCORE, "", True),
        (Lane.READING, "", False),
    ]
    assert json.loads(found[3].payload) == {"at": NOW, "values": {"t": 1.0}}
    later = door.entries([message(Kind.STATE, "record", State(NOW + 1, True))], NOW)[0]
    assert later.sense == found[1].sense


def test_what_cannot_be_read_is_counted_and_what_was_cleared_is_passed_over() -> None:
    door = gate()
    topic = topics.topic(Kind.READING, "pump")
    assert (
        door.entries([Message(topic, b"{"), Message(topics.alarm("pump"), b"", 1, True), Message("else", b"x")], NOW)
        == []
    )
    assert door.ledger.dropped == {"malformed": 1}


# The envelope


def test_the_envelope_is_the_event_with_its_number() -> None:
    sealed = json.loads(envelope.seal("0f", Parcel(Lane.SCORE, 7, 5, "score/pump", b'{"at":1,"score":2.0}')))
    assert sealed == {"from": "0f", "lane": "score", "seq": 7, "prev": 5, "at": 1, "score": 2.0}


@given(st.lists(st.integers(0, 5), max_size=30), st.randoms(use_true_random=False))
def test_a_receiver_takes_each_number_once_and_sees_gaps(resent: list[int], random: Any) -> None:
    """Whatever is sent again, from whatever confirmed place, each arrives once and in order."""
    mark, taken, sent = 0, [], 0
    for back in resent:
        first = max(0, sent - back) if sent else 0
        first = min(first, mark)
        for seq in range(first + 1, sent + 3):
            if random.random() < 0.3:
                break  # the line is lost
            verdict = envelope.judge(seq, seq - 1, mark)
            assert not (verdict.fresh and verdict.missing)
            if verdict.fresh:
                taken.append(seq)
                mark = seq
            sent = max(sent, seq)
    assert taken == list(range(1, mark + 1))
    assert envelope.judge(mark + 2, mark + 1, mark) == (False, True)


# The pace


def test_batches_grow_while_they_are_quick_and_shrink_when_they_are_slow_or_lost() -> None:
    batches = Batches()
    for _ in range(20):
        batches.delivered(batches.size, 0.01)
    assert batches.size == LARGEST
    batches.delivered(batches.size, 1.0)
    batches.failed()
    assert batches.size == LARGEST // 4
    for _ in range(20):
        batches.failed()
    assert batches.size == 1


@given(st.integers(1, 5000), st.integers(0, 3000))
def test_a_backlog_leaves_at_the_declared_rate_beside_what_comes_in(rate: int, coming: int) -> None:
    polite = Politeness(rate)
    waiting, received, now = 1_000_000, 1_000_000, 0.0
    left = 0
    for _ in range(6000):  # a minute of looks
        room = polite.room(now, waiting, received)
        count = min(room, LARGEST)
        polite.took(count)
        left += count
        now += 0.01
        received += coming // 100
    assert left <= 60.5 * (rate + coming) + 1
    assert left >= 0.7 * 60 * rate


def test_without_a_backlog_there_is_no_bound() -> None:
    polite = Politeness(10)
    assert polite.room(0.0, 5, 100) == LARGEST
    assert Politeness(0).room(0.0, 10**6, 0) == LARGEST


@given(st.floats(0, 1))
def test_patience_doubles_to_a_bound_and_begins_anew(luck: float) -> None:
    patience = Patience()
    waits = [patience.failed(luck) for _ in range(20)]
    assert waits == sorted(waits)
    assert waits[-1] <= 1.25 * LAST_RETRY_S
    patience.worked()
    assert patience.failed(luck) == waits[0]


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        ("certificate verify failed: certificate has expired", "clock"),
        ("certificate is not yet valid", "clock"),
        ("it refuses us: Not authorized", "access rules"),
        ("Connection refused", "running"),
        ("something new", "by itself"),
    ],
)
def test_errors_carry_their_remedy(problem: str, word: str) -> None:
    assert word in remedies.remedy(problem)


@given(
    st.dictionaries(st.text('ab:"{}\\ é\x1f', min_size=1, max_size=4), st.floats(-1e6, 1e6), min_size=1, max_size=4),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_a_bare_reading_leaves_with_its_values_however_it_is_written(
    values: dict[str, float], indent: int | None, in_ascii: bool
) -> None:
    came = json.dumps(values, indent=indent, ensure_ascii=in_ascii).encode()
    entries = gate().entries([Message(topics.topic(Kind.READING, "pump"), came)], NOW)
    for entry in entries:  # names with control characters are refused
        assert json.loads(entry.payload) == {"at": NOW, "values": values}
    assert entries or any("\x1f" in name for name in values)


def test_a_reading_that_names_a_point_twice_leaves_with_one_of_it() -> None:
    (entry,) = gate().entries([Message(topics.topic(Kind.READING, "pump"), b'{"t": 1, "t": 2}')], NOW)
    assert entry.payload == b'{"at":%d,"values":{"t":2.0}}' % NOW


def test_a_name_that_is_masked_does_not_leave_as_it_was_written() -> None:
    (entry,) = gate().entries([Message(topics.topic(Kind.READING, "pump"), b'{"13800138000": 1}')], NOW)
    assert b"13800138000" not in entry.payload
