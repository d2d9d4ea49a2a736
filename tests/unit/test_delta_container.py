"""The patch's own form: what is written is read back, and nothing else is read."""

import hashlib

import cbor2
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.delta import container
from ota.delta.codec import MAX_PARTS, Operation, Part, Segment
from ota.delta.container import Change, Content, Way
from ota.delta.errors import DeltaError, PatchError
from ota.delta.tensors import Memory

OLD, NEW = Content(b"o" * 32, 40), Content(b"n" * 32, 50)
FRAMES = (b"first", b"second frame")


def patch(changes: list[Change], folder: bool = False, frames: tuple[bytes, ...] = FRAMES) -> bytes:
    index = b"".join(container.entry(len(frame), container.frame_digest(frame)) for frame in frames)
    return container.written(changes, folder, index) + b"".join(frames)


def one_file() -> bytes:
    return patch([Change("model", NEW, Way.COVERS, 2, "model", OLD)])


def read(data: bytes) -> container.Manifest:
    return container.read(Memory(data), len(data))


def forged(plain: object, index: bytes = b"", frames: bytes = b"") -> bytes:
    """A patch of any manifest, its digest right."""
    body = (encoded := cbor2.dumps(plain, canonical=True)) + index
    return container.MAGIC + len(encoded).to_bytes(4, "little") + hashlib.sha256(body).digest() + body + frames


def test_a_patch_of_one_file() -> None:
    data = one_file()
    manifest = read(data)
    assert not manifest.folder
    assert manifest.size == 50
    [(change, frames)] = manifest.frames()
    assert change == Change("model", NEW, Way.COVERS, 2, "model", OLD)
    assert tuple(data[frame.offset : frame.offset + frame.size] for frame in frames) == FRAMES
    assert [frame.digest for frame in frames] == [container.frame_digest(frame) for frame in FRAMES]
    assert len(data) - sum(map(len, FRAMES)) < 300


def test_a_patch_of_a_folder() -> None:
    changes = [
        Change("a", NEW, Way.COVERS, 1),
        Change("b/model.bin", NEW, Way.TENSORS, 1, "b/model.bin", OLD),
        Change("b/model.xml", OLD, Way.COPY, 0, "c", OLD),
    ]
    manifest = read(patch(changes, folder=True))
    assert list(manifest.changes) == changes
    assert [len(frames) for _, frames in manifest.frames()] == [1, 1, 0]


@pytest.mark.parametrize("place", range(len(one_file()) - sum(map(len, FRAMES))))
def test_a_bit_that_flipped_ahead_of_the_frames(place: int) -> None:
    for bit in (1, 128):
        data = bytearray(one_file())
        data[place] ^= bit
        with pytest.raises(PatchError):
            read(bytes(data))


@pytest.mark.parametrize("size", [*range(0, len(one_file()), 7), len(one_file()) - 1, len(one_file()) + 1])
def test_a_patch_that_is_cut_off_or_goes_on(size: int) -> None:
    with pytest.raises(PatchError):
        read((one_file() + b"\0")[:size])


PLAIN = {"path": "model", "new": [b"n" * 32, 50], "way": "covers", "frames": 0, "from": "model", "old": [b"o" * 32, 40]}


def test_a_manifest_that_is_as_it_should_be() -> None:
    assert read(forged({"format": 2, "folder": False, "files": [PLAIN]})).size == 50


@pytest.mark.parametrize(
    "change",
    [
        {"path": 1},
        {"path": "other"},
        {"new": [b"n" * 31, 50]},
        {"new": [b"n" * 32, -1]},
        {"new": [b"n" * 32, 1 << 60]},
        {"new": [b"n" * 32, True]},
        {"new": [b"n" * 32, 5.0]},
        {"way": "magic"},
        {"way": ["covers"]},
        {"way": "copy"},
        {"frames": 1 << 30},
        {"frames": -1},
        {"from": "../model"},
        {"from": None},
        {"old": None},
        {"more": 1},
    ],
)
def test_a_file_that_is_not_described_as_it_should_be(change: dict[str, object]) -> None:
    with pytest.raises(PatchError):
        read(forged({"format": 2, "folder": False, "files": [PLAIN | change]}))


@pytest.mark.parametrize(
    "plain",
    [
        [],
        {"format": 1, "folder": False, "files": [PLAIN]},
        {"format": 3, "folder": False, "files": [PLAIN]},
        {"format": 2, "folder": 0, "files": [PLAIN]},
        {"format": 2, "folder": False, "files": []},
        {"format": 2, "folder": False, "files": {}},
        {"format": 2, "folder": False, "files": [PLAIN, PLAIN | {"path": "n"}]},
        {"format": 2, "folder": True, "files": [PLAIN, PLAIN]},
        {"format": 2, "folder": True, "files": [PLAIN, PLAIN | {"path": "a"}]},
        {"format": 2, "folder": True, "files": [PLAIN, PLAIN | {"path": "model/a"}]},
        {"format": 2, "folder": True, "files": [PLAIN] * 2000},
    ],
)
def test_a_manifest_that_is_not_as_it_should_be(plain: object) -> None:
    with pytest.raises(PatchError):
        read(forged(plain))


def test_a_manifest_in_another_form_is_refused() -> None:
    """The same content, its keys in another order."""
    files = [dict(reversed(PLAIN.items()))]
    encoded = cbor2.dumps({"format": 2, "folder": False, "files": files})
    digest = hashlib.sha256(encoded).digest()
    with pytest.raises(PatchError, match="own form"):
        read(container.MAGIC + len(encoded).to_bytes(4, "little") + digest + encoded)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x81" * 100_000,
        bytes.fromhex("9b00ffffffffffffff"),
        bytes.fromhex("5b00ffffffffffffff"),
        bytes.fromhex("bb00ffffffffffffff"),
        bytes.fromhex("c249010000000000000000"),
        bytes.fromhex("d81c81d81d00"),
        bytes.fromhex("a1a1016161"),
    ],
)
def test_a_manifest_that_is_no_cbor_of_ours(encoded: bytes) -> None:
    digest = hashlib.sha256(encoded).digest()
    with pytest.raises(PatchError):
        read(container.MAGIC + len(encoded).to_bytes(4, "little") + digest + encoded + bytes(64))


def test_a_frame_larger_than_any_is_refused() -> None:
    index = container.entry(container.MAX_FRAME + 1, bytes(16))
    data = forged({"format": 2, "folder": False, "files": [PLAIN | {"frames": 1}]}, index)
    with pytest.raises(PatchError, match="a frame of"):
        container.read(Memory(data), len(data) + container.MAX_FRAME + 1)


@pytest.mark.parametrize("path", ["a", "model.bin", "deep/er/model.xml", "ä b.txt", "..a", "a.."])
def test_paths_that_are_safe(path: str) -> None:
    assert container.safe(path)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "c:x", "a\0b", "a\nb", "\x1b[2J", "a" * 256,
     "a/" * 20 + "b", "é" * 600, "\ud800", "a?", "a*", "a\u202eb", None, 1, b"a"],
)  # fmt: skip
def test_paths_that_are_not(path: object) -> None:
    assert not container.safe(path)


def test_names_that_are_not_allowed_are_not_written_either() -> None:
    with pytest.raises(DeltaError, match="manifest takes"):
        container.written([Change(f"{n}" * 50, NEW, Way.COVERS) for n in range(10_000)], True, b"")


# Frames

parts = st.lists(
    st.builds(
        Part,
        st.sampled_from(Operation),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 32),
        st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=6).map(tuple),
    ),
    max_size=30,
).map(tuple)


@given(parts, st.binary(max_size=100), st.integers(0, 1 << 40))
def test_a_segment_comes_back_from_its_frame(parts: tuple[Part, ...], payload: bytes, end: int) -> None:
    segment = Segment(parts, payload)
    assert container.unframed(container.framed(segment, end), end, 1 << 42) == segment


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 1000))
def test_any_bytes_are_a_frame_or_refused(frame: bytes, end: int) -> None:
    try:
        segment = container.unframed(frame, end, 1000)
    except PatchError:
        return
    assert all(0 <= part.offset <= part.offset + part.size <= 1000 for part in segment.parts)


def head(numbers: object, packed: bool = False) -> bytes:
    encoded = cbor2.dumps(numbers)
    encoded = zstandard.compress(encoded) if packed else encoded
    return (len(encoded) << 1 | packed).to_bytes(4, "little") + encoded


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xff\xff\xff",
        head({}),
        head([0]),
        head([0, 0, 0]),
        head([0, 0, 10, 1]),
        head([0, 0, 10, -1]),
        head([9, 0, 10, 0]),
        head([-1, 0, 10, 0]),
        head([0, -1, 10, 0]),
        head([0, 0, -1, 0]),
        head([0, 0, 1001, 0]),
        head([0, 1 << 63, 1, 0]),
        head([0, 0.0, 1, 0]),
        head([0, False, 1, 0]),
        head([0, 0, 1, 1, "a"]),
        head([0, 0, 0, 0] * (MAX_PARTS + 1)),
        head([0] * 400_000, packed=True),
        (20 << 1 | 1).to_bytes(4, "little") + b"no zstd at all......",
    ],
)
def test_frames_that_are_refused(frame: bytes) -> None:
    with pytest.raises(PatchError):
        container.unframed(frame, 0, 1000)
