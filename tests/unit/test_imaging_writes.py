"""What a disk was told to write, and what a power cut leaves of it."""

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.imaging import writes
from tools.imaging.writes import DISCARD, FLUSH, FUA, SECTOR, RecordingError, Replay

SIZE = 16
ONES = [(sector, bytes([number + 1]) * SECTOR, 0) for number, sector in enumerate((3, 4, 3))]


def recorded(entries: list[tuple[int, bytes, int]]) -> bytes:
    """(sector, data, flags) each."""
    raw = struct.pack("<QQQI", writes.MAGIC, 1, len(entries), SECTOR).ljust(SECTOR, b"\0")
    for sector, data, flags in entries:
        raw += struct.pack("<QQQQ", sector, len(data) // SECTOR, flags, 0).ljust(SECTOR, b"\0")
        raw += b"" if flags & DISCARD else data
    return raw


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE * SECTOR))
    return path


def test_a_recording_is_read_in_order() -> None:
    recording = writes.parse(recorded([(3, b"a" * 1024, 0), (0, b"", FLUSH), (7, b"x" * SECTOR, DISCARD), *ONES]))
    places = [(one.at, one.size) for one in recording.writes]
    assert places == [(1536, 1024), (0, 0), (3584, 0), (1536, 512), (2048, 512), (1536, 512)]
    assert recording.data(recording.writes[0], 2) == b"aa"
    assert recording.touching(2048, 1) == [0, 4]
    assert [recording.flushed(moment) for moment in (0, 1, 2, 6)] == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "ends before its first"),
        (bytes(SECTOR), "not a recording"),
        (recorded(ONES)[: 2 * SECTOR + 8], "ends before write 1 of 3"),
        (recorded(ONES)[:-1], "ends before its last write"),
    ],
)
def test_what_is_no_recording_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(RecordingError, match=reason):
        writes.parse(raw)


def test_what_was_flushed_stands_and_the_rest_is_undone(disk: Path) -> None:
    replay = Replay(disk, writes.parse(recorded([*ONES[:2], (0, b"", FLUSH), ONES[2]])))
    with replay.cut(2, random.Random(1)):
        pass
    assert disk.read_bytes() == bytes(SIZE * SECTOR), "nothing was flushed by then"
    with replay.cut(4, random.Random(1)):
        assert disk.read_bytes()[4 * SECTOR] == 2
    assert disk.read_bytes()[3 * SECTOR] == 1, "undone, to what was flushed"
    with pytest.raises(ValueError, match="lies before"):
        replay.cut(1, random.Random(1)).__enter__()


def test_luck_takes_each_turn() -> None:
    """A write in flight may be there, in part, or not."""
    recording = writes.parse(recorded([(0, b"a" * 4 * SECTOR, 0)]))
    kept = {sum(size for _, size in writes.standing(recording, 1, random.Random(seed))) for seed in range(60)}
    assert kept == {0, *(number * SECTOR for number in range(1, 5))}


def test_a_write_that_was_to_be_durable_at_once_is() -> None:
    recording = writes.parse(recorded([(0, b"a" * 4 * SECTOR, FUA)]))
    assert {size for seed in range(60) for _, size in writes.standing(recording, 1, random.Random(seed))} == {
        4 * SECTOR
    }


@given(
    st.lists(st.tuples(st.integers(0, SIZE - 2), st.integers(0, 2), st.sampled_from([0, FLUSH, FUA]))),
    st.integers(0, 1000),
)
def test_a_cut_leaves_what_some_order_of_writes_would_have_left(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[int, int, int]], seed: int
) -> None:
    entries = [(at, bytes([number + 1]) * size * SECTOR, flags) for number, (at, size, flags) in enumerate(shape)]
    recording = writes.parse(recorded(entries))
    path = tmp_path_factory.mktemp("cut") / "disk"
    path.write_bytes(bytes(SIZE * SECTOR))
    replay, dice = Replay(path, recording), random.Random(seed)
    for moment in sorted(dice.choices(range(len(entries) + 1), k=4)):
        with replay.cut(moment, dice):
            there = path.read_bytes()
        durable = recording.flushed(moment)
        for sector in range(SIZE):
            wrote = [one + 1 for one in range(moment) if recording.writes[one].touches(sector * SECTOR, SECTOR)]
            allowed = {one for one in wrote if one > durable} | {
                max((one for one in wrote if one <= durable), default=0)
            }
            assert there[sector * SECTOR] in allowed
