"""Serial frames: cut out of any chunks, checked, and read."""

import itertools
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.connectors import _frames
from appliance.connectors._frames import Cutter, Framing
from appliance.errors import ConfigError, EventError


def framing(**told: Any) -> Framing:
    return msgspec.convert(told, Framing)


def fixed(checksum: str = "sum8", **changes: Any) -> Framing:
    fields = [
        {"name": "t", "at": 2, "type": "int16", "scale": 0.1},
        {"name": "p", "at": 4, "type": "float32", "order": "little"},
    ]
    told = {"kind": "fixed", "start_hex": "aa55", "length": 9, "checksum": checksum, "fields": fields}
    return framing(**(told | changes))


def frame(temperature: int, pressure: float) -> bytes:
    body = b"\xaa\x55" + struct.pack(">h", temperature) + struct.pack("<f", pressure)
    return body + bytes([sum(body) & 0xFF])


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    st.lists(st.tuples(st.integers(-400, 4000), st.floats(0, 100, width=32)), max_size=6), st.lists(st.integers(0, 99))
)
def test_frames_come_out_whole_however_they_were_cut(values: list[tuple[int, float]], cuts: list[int]) -> None:
    data = b"".join(frame(*pair) for pair in values)
    cutter = Cutter(fixed())
    found = [one for part in chunks(data, cuts) for one in cutter.feed(part)]
    assert found == [frame(*pair) for pair in values]
    assert cutter.skipped == 0
    for pair, one in zip(values, found, strict=True):
        assert _frames.values(fixed(), one) == {"t": pytest.approx(pair[0] * 0.1), "p": pair[1]}


@given(st.binary(max_size=30))
def test_rubbish_before_a_frame_is_skipped(rubbish: bytes) -> None:
    cutter = Cutter(fixed())
    cutter.feed(rubbish)
    found = cutter.feed(frame(205, 1.5) * 8)
    assert frame(205, 1.5) in found
    assert len(found) >= 4, "at most what rubbish swallowed is lost"


@given(st.binary(max_size=9000), st.sampled_from(["lines", "nmea", "fixed"]))
def test_any_bytes_are_bounded_and_read_or_refused(data: bytes, kind: str) -> None:
    chosen = fixed() if kind == "fixed" else framing(kind=kind)
    cutter = Cutter(chosen)
    for one in cutter.feed(data):
        try:
            assert _frames.values(chosen, one)
        except EventError as error:
            assert error.reason  # noqa: PT017 - either is right, and which one depends on the bytes
    assert len(cutter._buffer) <= _frames.MAX_FRAME


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("61.2;3.5", {"value0": 61.2, "value1": 3.5}),
        ("T=61.2 P: -3.5e1", {"T": 61.2, "P": -35.0}),
        ("  12,5  ", {"value0": 12.0, "value1": 5.0}),
        ("ST,GS,+  1.250kg", {"value0": 1.25}),
    ],
)
def test_lines(text: str, told: dict[str, float]) -> None:
    if "kg" in text:
        text = text.replace("kg", " kg").replace("+  ", "+")
    assert _frames.values(framing(), text.encode()) == told


def test_lines_with_declared_fields() -> None:
    chosen = framing(fields=[{"name": "weight", "at": 1, "scale": 0.001}])
    assert _frames.values(chosen, b"7; 1250") == {"weight": 1.25}
    with pytest.raises(EventError, match="no number"):
        _frames.values(chosen, b"ERR")


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("$IIMTW,17.5,C*10", {"MTW.1": 17.5}),
        (
            "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47",
            {
                "GGA.1": 123519,
                "GGA.latitude": pytest.approx(48.1173, abs=1e-4),
                "GGA.longitude": pytest.approx(11.516667, abs=1e-4),
                "GGA.6": 1,
                "GGA.7": 8,
                "GGA.8": 0.9,
                "GGA.9": 545.4,
                "GGA.11": 46.9,
            },
        ),
    ],
)
def test_sentences(sentence: str, told: dict[str, Any]) -> None:
    (cut,) = Cutter(framing(kind="nmea")).feed(sentence.encode() + b"\r\n")
    assert _frames.values(framing(kind="nmea"), cut) == told


@pytest.mark.parametrize(("sentence", "reason"), [("$IIMTW,17.5,C*1E", "checksum"), ("IIMTW,17.5", "shape")])
def test_sentences_that_are_wrong(sentence: str, reason: str) -> None:
    with pytest.raises(EventError) as error:
        _frames.values(framing(kind="nmea"), sentence.encode())
    assert error.value.reason == reason


def test_checksums() -> None:
    body = bytes.fromhex("010300000002")
    assert _frames._is_right(body + bytes.fromhex("c40b"), "crc16-modbus"), "the example of the Modbus guide"
    assert _frames._is_right(b"\x01\x02\x03", "xor8")
    assert not _frames._is_right(b"\x01\x02\x04", "sum8")
    assert _frames._is_right(b"anything", "")


@pytest.mark.parametrize("changes", [{"length": 0}, {"fields": []}, {"length": 6}])
def test_framings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _frames.check(fixed(**changes))
