"""The bytes of PUBLISH and PUBACK, topic filters, and our own QoS 1 messages: nothing here touches a socket."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bus import filters, packets
from appliance.bus.outgoing import FIRST_ID, WINDOW, Outgoing
from appliance.bus.packets import Joiner, ProtocolError, Splitter, acknowledgements
from appliance.bus.port import Message
from appliance.errors import BusError

MAX = 20_000  # payload, so that the bound is met often

topic_texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="+#\0"), min_size=1, max_size=30)
few_topics = st.sampled_from(["a", "mw/v1/reading/line1/pump", "mw/v1/reading/line1/valve", "größe/Ω"])
sizes = st.one_of(st.sampled_from([0, 1, 99, 100, 125, 200]), st.integers(0, 300), st.sampled_from([16_384, MAX]))
payloads = sizes.map(bytes)
messages = st.builds(Message, few_topics | topic_texts, payloads, st.integers(0, 1), st.booleans())


def encode(message: Message, packet_id: int = 7) -> bytes:
    if message.qos:
        return Joiner().packet(message, packet_id, again=False)
    return Joiner().join([message])


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def fed(splitter: Splitter, pieces: list[bytes]) -> Splitter:
    for piece in pieces:
        splitter.feed(piece)
    return splitter


# Receiving


@given(st.lists(messages, max_size=12), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(encode(message, number) for number, message in enumerate(sent, 1))
    splitter = fed(Splitter(MAX), in_pieces(stream, cuts))
    assert splitter.messages == sent
    assert splitter.ids == [number for number, message in enumerate(sent, 1) if message.qos]
    assert set(splitter.fresh) == {message.topic for message in sent}


@given(few_topics, st.lists(st.integers(0, 400), min_size=1, max_size=40))
def test_nothing_waits_for_bytes_that_do_not_belong_to_it(topic: str, lengths: list[int]) -> None:
    splitter = Splitter(MAX)
    for number, length in enumerate(lengths, 1):
        for piece in in_pieces(encode(Message(topic, bytes(length))), [length]):
            splitter.feed(piece)
        assert len(splitter.messages) == number


def test_a_short_message_at_the_end_of_a_run_does_not_wait() -> None:
    """The key by which a run of messages is recognised is longer than the last one."""
    long, short = Message("a/long/topic", b"123"), Message("a", b"")
    splitter = Splitter()
    for _ in range(3):
        splitter.feed(b"".join([*map(encode, [short, short, short, long, long, long, short])]))
    assert splitter.messages == [short, short, short, long, long, long, short] * 3


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_what_is_too_large_is_discarded_and_named(qos: int, step: int) -> None:
    around = [Message("a", b"before"), Message("big/one", bytes(MAX + 1), qos), Message("a", b"after")]
    stream = b"".join(encode(message, 9) for message in around)
    splitter = fed(Splitter(MAX), [stream[at : at + step] for at in range(0, len(stream), step)])
    assert splitter.messages == [around[0], around[2]]
    assert splitter.too_large == [("big/one", 9 if qos else 0)]
    assert splitter.ids == []


def test_a_large_message_is_not_kept_while_it_is_discarded() -> None:
    splitter = Splitter(MAX)
    splitter.feed(encode(Message("a", bytes(1 << 20)))[: 1 << 16])
    splitter.feed(bytes(1 << 19))
    assert sum(map(len, splitter._parts)) == 0
    assert splitter.messages == []


def test_acknowledgements_and_other_packets_are_told_apart() -> None:
    pingresp, suback = b"\xd0\x00", b"\x90\x03\x00\x05\x01"
    splitter = Splitter()
    splitter.feed(acknowledgements([1, 300, 65_535]) + suback + pingresp)
    assert splitter.acknowledged == [1, 300, 65_535]
    assert splitter.others == [(0x90, b"\x00\x05\x01"), (0xD0, b"")]


def test_qos_2_is_left_to_paho() -> None:
    splitter = Splitter()
    splitter.feed(b"\x34\x06\x00\x01a\x00\x05x")
    assert splitter.others == [(0x34, b"\x00\x01a\x00\x05x")]
    assert splitter.messages == []


@pytest.mark.parametrize(
    "stream",
    [
        b"\x30\x02\x00\x05",  # a topic longer than its packet
        b"\x30\x02\x00\x00",  # no topic
        b"\x32\x03\x00\x01a",  # QoS 1 without a packet id
        b"\x32\x05\x00\x01a\x00\x00",  # packet id 0
        b"\x40\x03\x00\x01\x00",  # an acknowledgement of three bytes
        b"\x30\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x90\xff\xff\x7f" + bytes(20),  # a SUBACK of two megabytes
        b"\x30\x01\x00\x30\x01\x00",
    ],
)
def test_what_is_no_mqtt_is_an_error(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        Splitter().feed(stream)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_are_split_or_refused(stream: bytes, cuts: list[int]) -> None:
    whole, cut = Splitter(MAX), Splitter(MAX)
    try:
        whole.feed(stream)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            fed(cut, [*in_pieces(stream, cuts), bytes(1 << 21)])
        return
    fed(cut, in_pieces(stream, cuts))
    assert (cut.messages, cut.ids, cut.others) == (whole.messages, whole.ids, whole.others)


def test_a_topic_that_is_no_utf_8_stays_visible() -> None:
    splitter = Splitter()
    splitter.feed(b"\x30\x05\x00\x02\xffaX")
    assert splitter.messages == [Message("\\xffa", b"X")]


def test_a_flood_of_topics_is_bounded() -> None:
    splitter = Splitter()
    for number in range(3 * packets.MAX_CACHED_TOPICS):
        splitter.feed(encode(Message(f"flood/{number:09}", b"x")) * 2)
        splitter.clear()
    assert len(splitter.topics) <= packets.MAX_CACHED_TOPICS
    assert len(splitter._heads) <= packets.MAX_CACHED_TOPICS


def test_a_new_connection_begins_afresh() -> None:
    splitter = Splitter()
    splitter.feed(encode(Message("a", b"x" * 100))[:50])
    splitter.restart()
    splitter.feed(encode(Message("b", b"y")))
    assert splitter.messages == [Message("b", b"y")]


# Sending


@given(st.lists(messages, max_size=10))
def test_joined_messages_are_split_again(sent: list[Message]) -> None:
    plain = [message for message in sent if not message.qos]
    joiner, splitter = Joiner(), Splitter(MAX)
    splitter.feed(joiner.join(plain))
    splitter.feed(joiner.join(plain))
    assert splitter.messages == [*plain, *plain]


def test_a_payload_beyond_the_bound_is_refused_with_a_remedy() -> None:
    with pytest.raises(BusError, match="larger than consumers accept") as caught:
        Joiner().join([Message("a", bytes(packets.MAX_PAYLOAD + 1))])
    assert "pieces" in caught.value.remedy


steps = st.lists(st.sampled_from(["add", "send", "acknowledge", "stray", "lose"]), max_size=60)


@settings(max_examples=200)
@given(steps, st.randoms(use_true_random=False))
def test_qos_1_is_kept_in_order_until_acknowledged(history: list[str], choice: random.Random) -> None:
    outgoing, number = Outgoing(Joiner()), itertools.count(1)
    unacknowledged: dict[int, Message] = {}  # by packet id: on their way
    waiting: list[tuple[Message, bool]] = []  # and whether they were sent before
    for step in history:
        if step == "add":
            message = Message("a", b"%d" % next(number), 1)
            outgoing.add(message)
            waiting.append((message, False))
        elif step == "send":
            splitter = Splitter()
            stream = outgoing.ready()
            splitter.feed(stream)
            assert splitter.messages == [message for message, _ in waiting]
            assert [bool(dup) for dup in _dups(stream)] == [again for _, again in waiting]
            assert not unacknowledged.keys() & set(splitter.ids)
            unacknowledged.update(zip(splitter.ids, splitter.messages, strict=True))
            waiting.clear()
        elif step == "acknowledge" and unacknowledged:
            packet_id = choice.choice([*unacknowledged])
            outgoing.acknowledge([packet_id])
            del unacknowledged[packet_id]
        elif step == "stray":
            outgoing.acknowledge([FIRST_ID - 1])
        elif step == "lose":
            outgoing.rewind()
            waiting = [(message, True) for message in unacknowledged.values()] + waiting
            unacknowledged.clear()
        assert len(outgoing) == len(unacknowledged) + len(waiting)


def _dups(stream: bytes) -> list[int]:
    """The DUP bit of each packet; they are all short."""
    found, position = [], 0
    while position < len(stream):
        found.append(stream[position] & packets.DUP)
        position += 2 + stream[position + 1]
    return found


def test_only_so_many_are_on_their_way_at_once() -> None:
    outgoing = Outgoing(Joiner())
    for _ in range(WINDOW + 10):
        outgoing.add(Message("a", b"", 1))
    splitter = Splitter()
    splitter.feed(outgoing.ready())
    assert len(splitter.ids) == WINDOW
    assert outgoing.ready() == b""
    outgoing.acknowledge(splitter.ids[:3])
    splitter.clear()
    splitter.feed(outgoing.ready())
    assert len(splitter.ids) == 3


def test_what_is_kept_is_bounded_in_number_and_in_bytes() -> None:
    outgoing = Outgoing(Joiner(), limit=3, limit_bytes=100)
    outgoing.add(Message("a", bytes(60), 1))
    with pytest.raises(BusError, match="wait for the broker's acknowledgement"):
        outgoing.add(Message("a", bytes(41), 1))
    outgoing.add(Message("a", bytes(40), 1))
    outgoing.add(Message("a", b"", 1))
    with pytest.raises(BusError, match="3 messages of QoS 1"):
        outgoing.add(Message("a", b"", 1))
    assert len(outgoing) == 3


# Filters

LEVELS = ["a", "b", "+"]
FILTERS = ["/".join(levels) for length in (1, 2, 3) for levels in itertools.product(LEVELS, repeat=length)]
FILTERS += ["#", *(f"{pattern}/#" for pattern in FILTERS), "$s/a", "$s/#"]
TOPICS = ["/".join(levels) for length in (1, 2, 3, 4) for levels in itertools.product("abc", repeat=length)]
TOPICS += ["$s", "$s/a", "$s/b", "$s/a/b"]


def test_filters_overlap_where_a_topic_matches_both() -> None:
    reached = {pattern: {topic for topic in TOPICS if filters.matches(pattern, topic)} for pattern in FILTERS}
    wrong = [
        (one, other)
        for one, other in itertools.product(FILTERS, repeat=2)
        if filters.overlap(one, other) != bool(reached[one] & reached[other])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/#", "sport", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
    ],
)
def test_filters_match_as_the_standard_says(pattern: str, topic: str, expected: bool) -> None:
    assert filters.matches(pattern, topic) is expected
