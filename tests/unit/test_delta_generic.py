"""Any bytes: ranges that are found, frames that give the file back, and frames that are refused."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.delta import covers, generic, packing
from ota.delta.covers import Cover
from ota.delta.errors import PatchError
from ota.delta.generic import FRAME, Covers
from ota.delta.tensors import Memory
from tests import deltas


def array(data: bytes) -> covers.Bytes:
    return np.frombuffer(data, np.uint8)


def frames(old: bytes, new: bytes) -> list[bytes]:
    found = packing.by_covers(array(old), array(new), covers.find(array(old), array(new)))
    assert found is not None
    return found


def given_back(old: bytes, size: int, parts: list[bytes]) -> bytes:
    decoder = Covers(Memory(old), len(old), size)
    return b"".join(decoder.decode(part) for part in parts)


def moved(seed: int = 1, size: int = 100_000) -> tuple[bytes, bytes]:
    """Two files of which the second has parts of the first in another order, changed here and there."""
    dice = random.Random(seed)
    old = dice.randbytes(size)
    new = bytearray(old[size // 2 :] + dice.randbytes(300) + old[: size // 3] + b"end")
    for _ in range(50):
        new[dice.randrange(len(new))] ^= 255
    return old, bytes(new)


def test_ranges_that_moved_are_found() -> None:
    old, new = moved()
    found = covers.find(array(old), array(new))
    assert sum(cover.size for cover in found) > 0.98 * len(new)
    assert all(first.new + first.size <= second.new for first, second in pairwise(found))
    packed = frames(old, new)
    assert sum(map(len, packed)) < 1500
    assert given_back(old, len(new), packed) == new


def test_a_table_of_which_every_value_moved_a_little_is_one_range() -> None:
    old = np.random.default_rng(1).integers(-60, 60, 50_000).astype(np.int8)
    new = old + np.random.default_rng(2).integers(-1, 2, 50_000).astype(np.int8)
    assert covers.find(array(old.tobytes()), array(new.tobytes())) == [Cover(0, 0, 50_000)]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400))))
def test_whatever_is_packed_comes_back(old: bytes, fresh: bytes, ranges: list[tuple[int, int]]) -> None:
    new = fresh + b"".join(old[min(pair) : max(pair)] for pair in ranges)
    assert given_back(old, len(new), frames(old, new)) == new


def test_files_of_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic, "FRAME", 10_000)
    monkeypatch.setattr(packing, "FRAME", 10_000)
    old, new = moved()
    packed = frames(old, new)
    assert len(packed) == -(-len(new) // 10_000)
    assert given_back(old, len(new), packed) == new


def test_decoding_goes_on_after_frames_whose_bytes_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic, "FRAME", 10_000)
    monkeypatch.setattr(packing, "FRAME", 10_000)
    old, new = moved()
    packed = frames(old, new)
    decoder = Covers(Memory(old), len(old), len(new))
    assert [decoder.decode(frame, wanted=False) for frame in packed[:3]] == [b""] * 3
    assert b"".join(decoder.decode(frame) for frame in packed[3:]) == new[30_000:]


def test_nothing_is_tried_that_cannot_come_near() -> None:
    new = random.Random(1).randbytes(10_000)
    assert packing.by_covers(array(b""), array(new), [], most=1000) is None
    assert packing.by_covers(array(b""), array(new), [], most=9000) is not None


def test_broken_frames_are_refused_or_give_as_much_as_they_should() -> None:
    old, new = moved(size=3000)
    [frame] = frames(old, new)
    refused = 0
    for data in deltas.broken(frame, 2, 500):
        try:
            assert len(given_back(old, len(new), [data])) == len(new)
        except PatchError:
            refused += 1
    assert refused > 100


def numbers(*values: int) -> bytes:
    return b"".join(deltas.varint(value) for value in values)


def frame(instructions: bytes, differences: bytes = b"", fresh: bytes = b"") -> bytes:
    packed = [packing._packed(stream) for stream in (instructions, differences, fresh)]
    codes = bytes(part[0] for part in packed)
    head = [len(instructions), len(packed[0]) - 1, len(packed[1]) - 1]
    return codes + b"".join(number.to_bytes(4, "little") for number in head) + b"".join(part[1:] for part in packed)


def test_ranges_that_stay_as_they_are_need_no_differences() -> None:
    old = random.Random(1).randbytes(300_000)
    new = old[:100_000] + b"x" + old[100_001:]
    assert sum(map(len, frames(old, new))) < 60
    data = frame(numbers(0, 3, 2 << 2 | 1, 0, 3, 4 << 2 | 3))
    assert given_back(b"0123456", 6, [data]) == b"234123"


def test_a_frame_made_by_hand() -> None:
    data = frame(numbers(2, 3, 2 << 2, 1, 0), b"\0\1\0", b"abc")
    assert given_back(b"0123456", 6, [data]) == b"ab244c"


@pytest.mark.parametrize(
    "data",
    [
        frame(numbers(7, 0), b"", b"abcdefg"),  # more than the file has
        frame(numbers(0, 0), b"", b""),  # nothing
        frame(numbers(5, 0), b"", b"abcde"),  # less
        frame(numbers(6, 0, 1), b"", b"abcdef"),  # instructions that are left
        frame(numbers(6, 0), b"", b"abc"),  # bytes that are not there
        frame(numbers(0, 6, 2 << 2), bytes(6)),  # beyond the old file
        frame(numbers(0, 6, 1 << 2 | 2), bytes(6)),  # before it
        frame(numbers(0, 6, 1 << 70), bytes(6)),
        frame(b"\x80", b"", b""),
        b"\xff\xff\xff" + bytes(12),  # windows too large
        b"",
        b"\0\0\0",
        b"\0\0\0" + b"\xff" * 12,
    ],
)
def test_frames_that_are_refused(data: bytes) -> None:
    with pytest.raises(PatchError):
        given_back(b"0123456", 6, [data])


def test_a_stream_gives_no_more_than_it_is_asked_for() -> None:
    """A bomb: a gigabyte of zeros in a few kilobytes is never unpacked."""
    bomb = packing._packed(bytes(1 << 26))
    stream = generic._Stream(bomb[0])
    stream.feed(bomb[1:])
    assert stream.take(10) == bytes(10)
    assert stream.take(FRAME) == bytes(FRAME)


# By dictionary


def test_by_dictionary() -> None:
    old, new = moved()
    packed = packing.by_dictionary(old, new)
    assert len(packed) < 2000
    assert generic.from_dictionary(old, packed, len(new)) == new


def test_a_zstd_frame_that_is_not_what_it_says() -> None:
    old, new = moved(size=3000)
    packed = packing.by_dictionary(old, new)
    bomb = packing.by_dictionary(old, bytes(1 << 24))
    for data, size in [(packed, len(new) - 1), (packed[:-3], len(new)), (b"", 5), (b"no zstd", 5), (bomb, len(new))]:
        with pytest.raises(PatchError):
            generic.from_dictionary(old, data, size)
    with pytest.raises(PatchError, match="a dictionary of"):
        generic.from_dictionary(old, bomb, 1 << 24)


# Ranges that other tools find


def test_covers_of_hdiffpatch_are_read() -> None:
    """Two ranges, the second from before the first, as variable-length integers of an HDIFF13 patch."""

    def number(value: int, bits: int = 7, sign: int = 0) -> bytes:
        found = [value & 0x7F]
        while (value := value >> 7) >= 1 << (bits if bits < 7 and value < 1 << bits else 7):
            found.append(value & 0x7F | 0x80)
        if value:
            found.append(value & 0x7F | 0x80)
        return bytes(reversed(found)) if not sign else bytes([found[-1] | 0x80, *found[-2::-1]])

    sizes = b"".join(number(value) for value in (1000, 1000, 2, *[0] * 8))
    first = number(5, 6) + number(10) + number(300)
    second = number(55, 6, sign=1) + number(0) + number(20)
    assert covers._hdiff_covers(b"HDIFF13&\0" + sizes + first + second) == [Cover(10, 5, 300), Cover(310, 250, 20)]


def test_ranges_of_tools_stay_within_the_old_file() -> None:
    assert covers.within([Cover(0, -3, 10), Cover(20, 95, 10), Cover(40, 200, 5)], 100) == [
        Cover(3, 0, 7),
        Cover(20, 95, 5),
    ]


def test_tools_that_are_installed_find_ranges_that_give_the_file_back(tmp_path: Path) -> None:
    old, new = moved(size=20_000)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    for found in [*covers.of_tools(tmp_path / "old", tmp_path / "new"), []]:
        packed = packing.by_covers(array(old), array(new), found)
        assert packed is not None
        assert given_back(old, len(new), packed) == new
