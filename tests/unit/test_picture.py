"""The picture of the bus: whatever arrives, it stands, its books balance and it stays small."""

import io
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from appliance.bus.port import Message
from appliance.cli.screen import Frame, draw, share_out, verdict
from appliance.events import codec, topics
from appliance.events.schema import Alarm, AlarmState, Block, Event, Kind, Reading, Score, Severity, Stage, State
from appliance.services import picture as module
from appliance.services.picture import MAX_VALUES, SECOND, Picture, Rate
from appliance.services.words import amount, balanced, columns, plain, printable, span, summary_text

NOW = 1_790_000_000 * SECOND


def message(kind: Kind, path: str, event: Event) -> Message:
    return Message(topics.topic(kind, path), codec.encode(event))


def reading(path: str, **values: float) -> Message:
    return message(Kind.READING, path, Reading(NOW, values))


def score(path: str, value: float, stage: Stage = Stage.ALARMING, **fields: Any) -> Message:
    return message(Kind.SCORE, path, Score(NOW, value, 2.0, stage, "vibration", rows=400, **fields))


def alarm(path: str, state: AlarmState = AlarmState.UNACKNOWLEDGED, **fields: Any) -> Message:
    known: dict[str, Any] = {"severity": Severity.ALARM, "cause": "vibration", "score": 5.0, "threshold": 2.0}
    return message(Kind.ALARM, path, Alarm(f"id-{path}", NOW, NOW, state, **{**known, **fields}))


def state(service: str, **fields: Any) -> Message:
    return message(Kind.STATE, service, State(NOW, **{"online": True, **fields}))


def texts(changes: list[module.Change]) -> list[str]:
    return [f"{change.kind} {change.subject}: {change.text}" for change in changes]


class TestFeeding:
    def test_a_reading_makes_an_asset_and_later_ones_update_it(self) -> None:
        picture = Picture(NOW)
        assert texts(picture.feed([reading("line1/pump", flow=3.0)], NOW)) == ["asset line1/pump: first heard of"]
        assert picture.feed([reading("line1/pump", flow=4.0)], NOW + SECOND) == []
        asset = picture.assets["line1/pump"]
        assert (asset.values, asset.readings, asset.seen) == ({"flow": 4.0}, 2, NOW + SECOND)

    def test_a_block_shows_its_last_samples(self) -> None:
        picture = Picture(NOW)
        samples = [1.0, 2.0, 3.5]
        payload = msgspec.json.encode({"rate": 100.0, "values": {"x": samples}})
        picture.feed([Message(topics.topic(Kind.BLOCK, "fan"), payload)], NOW)
        assert picture.assets["fan"].values == {"x": 3.5}
        assert isinstance(codec.decode(Kind.BLOCK, payload, NOW), Block)

    def test_a_change_of_stage_is_told_once(self) -> None:
        picture = Picture(NOW)
        told = texts(picture.feed([score("fan", 0.1, Stage.LEARNING), score("fan", 0.2, Stage.LEARNING)], NOW))
        assert told == ["asset fan: first heard of", "stage fan: learning (400 rows learned)"]
        assert texts(picture.feed([score("fan", 0.2, Stage.WARNING)], NOW)) == [
            "stage fan: learning -> warns only (400 rows learned)"
        ]

    def test_an_alarm_stands_until_it_ends_and_stays_in_the_report(self) -> None:
        picture = Picture(NOW)
        assert len(picture.feed([alarm("fan")], NOW)) == 1
        assert picture.feed([alarm("fan")], NOW) == []
        assert "acknowledged by anna" in picture.feed([alarm("fan", AlarmState.ACKNOWLEDGED, by="anna")], NOW)[0].text
        assert list(picture.alarms) == [("fan", "anomaly")]
        picture.feed([alarm("fan", AlarmState.NORMAL), Message(topics.topic(Kind.ALARM, "fan"), b"")], NOW)
        assert picture.alarms == {}
        assert [(one["asset"], one["state"]) for one in picture.summary(NOW)["alarms"]] == [("fan", "normal")]

    def test_a_new_reason_to_drop_is_told_with_its_example(self) -> None:
        picture = Picture(NOW)
        picture.feed([state("ingest", received=1, processed=1)], NOW)
        detail = {"examples": {"not-finite": "'flow' is nan"}}
        told = picture.feed([state("ingest", received=2, processed=1, dropped={"not-finite": 1}, detail=detail)], NOW)
        assert texts(told) == ["service ingest: drops messages: not-finite (1), such as: 'flow' is nan"]
        assert picture.drops() == {"not-finite": 1}

    def test_latency_is_from_the_reading_to_its_score(self) -> None:
        picture = Picture(NOW)
        assert picture.latency_ms(0.5) is None
        picture.feed([score("fan", 0.1)], NOW + 5_000_000)
        picture.feed([score("fan", 0.1)], NOW + 3600 * SECOND)  # a recording played with its old times
        assert picture.latency_ms(0.5) == picture.latency_ms(0.99) == 5.0


class TestOrder:
    def test_what_nobody_has_seen_comes_first(self) -> None:
        picture = Picture(NOW)
        picture.feed(
            [
                alarm("shelved", AlarmState.SHELVED),
                alarm("seen", AlarmState.ACKNOWLEDGED),
                alarm("warned", severity=Severity.WARNING),
                alarm("new"),
            ],
            NOW,
        )
        assert [path for path, _ in picture.standing()] == ["new", "warned", "seen", "shelved"]

    def test_assets_with_alarms_come_before_strained_ones_before_those_that_learn(self) -> None:
        picture = Picture(NOW)
        picture.feed(
            [score("learns", 9.0, Stage.LEARNING), score("calm", 0.1), score("strained", 1.9), score("bad", 0.2)], NOW
        )
        picture.feed([alarm("bad")], NOW)
        assert [asset.path for asset in picture.worst()] == ["bad", "strained", "calm", "learns"]


class TestBounds:
    def test_assets_beyond_the_bound_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_ASSETS", 3)
        picture = Picture(NOW)
        picture.feed([reading(f"a{number}", x=1.0) for number in range(5)], NOW)
        assert len(picture.assets) == 3
        assert picture.ledger.dropped == {"too-many-assets": 2}

    def test_a_silent_asset_makes_room_unless_its_alarm_stands(self) -> None:
        picture = Picture(NOW)
        picture.feed([reading("gone", x=1.0), reading("bad", x=1.0), alarm("bad")], NOW)
        picture.feed([], NOW + 3600 * SECOND)
        assert list(picture.assets) == ["bad"]

    def test_values_and_remembered_alarms_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_RAISED", 2)
        picture = Picture(NOW)
        picture.feed([reading("wide", **{f"p{number}": 1.0 for number in range(100)})], NOW)
        picture.feed([alarm(f"a{number}") for number in range(4)], NOW)
        assert (len(picture.assets["wide"].values), picture.assets["wide"].points) == (MAX_VALUES, 100)
        assert [path for path, _ in picture.raised.values()] == ["a2", "a3"]

    def test_a_state_too_large_to_keep_is_refused(self) -> None:
        picture = Picture(NOW)
        picture.feed([state("big", detail={"x": "y" * 100_000})], NOW)
        assert (picture.services, picture.ledger.dropped) == ({}, {"too-large": 1})

    @pytest.mark.parametrize("field", ["at", "received"])
    def test_integers_without_end_are_refused(self, field: str) -> None:
        picture = Picture(NOW)
        payload = cbor2.dumps({"at": NOW, "online": True, field: 10**5000})
        picture.feed([Message(topics.state("big"), payload)], NOW)
        assert picture.services == {}
        assert sum(picture.ledger.dropped.values()) == 1


class TestRate:
    def test_one_a_second_shows_as_one_whenever_one_looks(self) -> None:
        rate = Rate(NOW)
        for second in range(60):
            rate.add(1, NOW + second * SECOND)
        seen = [rate.value(NOW + 59 * SECOND + part * SECOND // 10) for part in range(10)]
        assert all(0.9 < value < 1.1 for value in seen)

    def test_silence_fades_and_a_clock_that_runs_back_does_no_harm(self) -> None:
        rate = Rate(NOW)
        rate.add(100, NOW)
        assert rate.value(NOW - 3600 * SECOND) > 0
        assert rate.value(NOW + 3600 * SECOND) < 1e-6


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(
    [name for event in (Reading, Score, Alarm, State) for name in event.__struct_fields__] + ["examples", "else"]
)
stages = st.sampled_from([*Stage, *AlarmState, *Severity, "", "\x1b[2J"])
maps = st.dictionaries(field_names, plain_values | stages, max_size=20)
whole_scores = st.builds(
    Score, at=st.integers(), score=st.floats(), threshold=st.floats(), stage=st.sampled_from(Stage), cause=st.text()
)
whole_alarms = st.builds(
    Alarm,
    id=st.text(max_size=8),
    at=st.integers(),
    raised=st.integers(),
    state=st.sampled_from(AlarmState),
    severity=st.sampled_from(Severity),
    cause=st.text(max_size=8),
    score=st.floats(),
    threshold=st.floats(),
    by=st.text(max_size=8),
    until=st.integers(),
)
whole_states = st.builds(
    State,
    at=st.integers(),
    online=st.booleans(),
    received=st.integers(),
    dropped=st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
    detail=st.dictionaries(st.text(max_size=8) | st.just("examples"), plain_values, max_size=3),
)
payloads = (
    st.binary(max_size=64)
    | maps.map(cbor2.dumps)
    | maps.map(lambda value: repr(value).encode("utf-8", "surrogatepass"))
    | (whole_scores | whole_alarms | whole_states).map(codec.encode)
    | st.builds(Reading, at=st.just(NOW), values=st.dictionaries(st.text(max_size=8), st.floats())).map(codec.encode)
)
addresses = st.sampled_from([f"mw/v1/{kind}/{path}" for kind in Kind for path in ("a", "a/b", "A b", "")] + ["x", ""])
batches = st.lists(st.builds(Message, addresses, payloads), max_size=12)


class TestAnything:
    @given(st.lists(st.tuples(batches, st.integers(-(10**12), 10**12)), max_size=3))
    def test_whatever_arrives_the_picture_stands_and_its_books_balance(
        self, fed: list[tuple[list[Message], int]]
    ) -> None:
        picture = Picture(NOW)
        for batch, later in fed:
            told = picture.feed(batch, NOW + later)
            assert all("\x1b" not in line for line in texts(told))
        ledger = picture.ledger
        assert ledger.received == sum(len(batch) for batch, _ in fed)
        assert ledger.queued == 0
        assert ledger.processed == sum(picture.counts.values())
        summary = picture.summary(NOW)
        assert msgspec.json.decode(msgspec.json.encode(summary))["readings"] == picture.counts[Kind.READING]
        assert "readings/s" in summary_text(summary)

    @given(batches, st.integers(20, 200), st.integers(6, 60), st.booleans())
    def test_it_can_always_be_drawn_within_the_terminal(
        self, batch: list[Message], width: int, height: int, connected: bool
    ) -> None:
        picture = Picture(NOW)
        picture.feed(batch, NOW)
        lines = drawn(picture, Frame(width, height, NOW, "box", connected))
        assert 3 <= len(lines) <= height
        assert max(map(len, lines)) <= width
        assert not any("\x1b" in line for line in lines)


def drawn(picture: Picture, frame: Frame) -> list[str]:
    console = Console(file=io.StringIO(), width=frame.width, height=frame.height, color_system=None)
    console.print(draw(picture, frame))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class TestDrawing:
    frame = Frame(80, 24, NOW, "box")

    def busy(self) -> Picture:
        picture = Picture(NOW)
        picture.feed([state(name, received=10, processed=10) for name in ("ingest", "detect", "record")], NOW)
        picture.feed([reading(f"line/a{number:02}", flow=1.0) for number in range(40)], NOW)
        picture.feed([score(f"line/a{number:02}", 0.5) for number in range(40)], NOW)
        return picture

    def test_a_quiet_plant_says_so(self) -> None:
        assert verdict(self.busy(), self.frame)[0] == "ALL NORMAL  40 assets watched"

    def test_an_alarm_is_the_first_thing_to_read(self) -> None:
        picture = self.busy()
        picture.feed([alarm("line/a07"), alarm("line/a09", AlarmState.ACKNOWLEDGED, by="anna")], NOW)
        lines = drawn(picture, self.frame)
        assert lines[1].strip() == "ALARM  line/a07: vibration"
        assert [line.split()[1] for line in lines if line.startswith(" ALARM ")] == [
            "line/a07:",
            "line/a07",
            "line/a09",
        ]
        assert " you have seen it?  millwright alarms ack line/a07" in lines

    def test_an_alarm_that_everybody_knows_does_not_shout(self) -> None:
        picture = self.busy()
        picture.feed([alarm("line/a07", AlarmState.ACKNOWLEDGED, by="anna")], NOW)
        assert verdict(picture, self.frame)[0].startswith("NOTHING NEW")

    def test_a_service_that_died_is_named(self) -> None:
        picture = self.busy()
        picture.feed([state("record", online=False)], NOW)
        assert verdict(picture, self.frame)[0].startswith("OFFLINE: record")

    def test_a_lost_connection_is_told_before_everything_else(self) -> None:
        picture = self.busy()
        picture.feed([alarm("line/a07")], NOW)
        assert verdict(picture, self.frame._replace(connected=False))[0].startswith("NO CONNECTION")

    def test_an_empty_bus_tells_how_to_fill_it(self) -> None:
        assert any("mosquitto_pub" in line for line in drawn(Picture(NOW), self.frame))

    @pytest.mark.parametrize("height", range(6, 50))
    def test_alarms_keep_their_place_in_a_small_terminal(self, height: int) -> None:
        picture = self.busy()
        picture.feed([alarm(f"line/a{number:02}") for number in range(5)], NOW)
        shares = share_out(picture, height)
        assert shares.alarms >= min(5, max(height - 11, 0))
        assert shares.assets == 0 or shares.alarms > 0
        assert shares.services == 0 or shares.assets >= 3
        assert len(drawn(picture, self.frame._replace(height=height))) <= height


class TestWords:
    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (61.2345, "61.23"), (0.00223, "0.00223"), (101325.0, "101325"), (1e-9, "1.00e-09"), (-5.0, "-5")],
    )
    def test_amounts_are_short(self, value: float, text: str) -> None:
        assert amount(value) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(-3, "0 s"), (99, "99 s"), (100, "1 min"), (12_000, "3 h 20 min"), (400_000, "4 d")]
    )
    def test_spans_are_short(self, seconds: float, text: str) -> None:
        assert span(seconds) == text

    @given(st.text())
    def test_nothing_that_moves_a_cursor_is_printed(self, text: str) -> None:
        assert printable(text).isprintable()
        assert len(printable(text)) == len(text)

    @given(st.dictionaries(st.text(max_size=5) | st.integers(), plain_values | st.binary(max_size=5), max_size=5))
    def test_plain_values_are_json(self, value: dict[Any, Any]) -> None:
        assert isinstance(msgspec.json.decode(msgspec.json.encode(plain(value))), dict)

    def test_books_that_do_not_balance_are_seen(self) -> None:
        assert balanced(State(NOW, True, received=6, processed=3, queued=2, dropped={"topic": 1}))
        assert not balanced(State(NOW, True, received=6, processed=3, queued=2))
        assert not balanced(State(NOW, True, received=1, processed=3, queued=-2))

    def test_columns_align_and_empty_ones_vanish(self) -> None:
        assert columns([("A", "B", "C"), ("1", "", "x"), ("222", "", "y")]) == ["A    C", "1    x", "222  y"]
