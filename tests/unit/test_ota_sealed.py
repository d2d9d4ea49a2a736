"""Encrypted files: what was sealed comes back, and nothing else does."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota import sealed
from ota.errors import SealedError, StorageError
from ota.sealed import CHUNK, MAGIC, TAG, context

KEY = bytes(range(32))
OF = context("plant-a", "models/plant-a/pump-1.0.0.bundle", "1.0.0")
WHOLE = CHUNK + TAG


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


def content(length: int) -> bytes:
    return (b"0123456789abcdef-" * (length // 17 + 1))[:length]


def seal(folder: Path, data: bytes, of: bytes = OF) -> bytes:
    (folder / "plain").write_bytes(data)
    sealed.seal(folder / "plain", folder / "sealed", KEY, of)
    return (folder / "sealed").read_bytes()


def unseal(folder: Path, data: bytes, key: bytes = KEY, of: bytes = OF) -> bytes:
    (folder / "given").write_bytes(data)
    opened = folder / "opened"
    opened.unlink(missing_ok=True)
    try:
        sealed.unseal(folder / "given", opened, key, of)
        return opened.read_bytes()
    except SealedError:
        assert not opened.exists()  # not a byte of what does not open
        assert not list(folder.glob(".*"))
        raise


def chunks(data: bytes) -> list[bytes]:
    body = data[len(MAGIC) :]
    return [body[start : start + WHOLE] for start in range(0, len(body), WHOLE)]


def refused(folder: Path, parts: list[bytes]) -> None:
    with pytest.raises(SealedError):
        unseal(folder, MAGIC + b"".join(parts))


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_what_was_sealed_comes_back(folder: Path, length: int) -> None:
    data = content(length)
    made = seal(folder, data)
    assert len(data) < 16 or data[:16] not in made
    assert unseal(folder, made) == data
    assert length <= sealed.unsealed_bytes(len(made)) <= len(made)


def test_another_key_opens_nothing(folder: Path) -> None:
    with pytest.raises(SealedError):
        unseal(folder, seal(folder, content(100)), bytes(32))
    with pytest.raises(SealedError, match="16 bytes"):
        unseal(folder, seal(folder, content(100)), KEY[:16])


@pytest.mark.parametrize(
    "other",
    [
        context("plant-b", "models/plant-a/pump-1.0.0.bundle", "1.0.0"),
        context("plant-a", "models/plant-a/pump-1.0.1.bundle", "1.0.0"),
        context("plant-a", "models/plant-a/pump-1.0.0.bundle", "1.0.1"),
        context("plant-a models", "/plant-a/pump-1.0.0.bundle", "1.0.0"),
    ],
)
def test_nor_does_its_key_under_another_fleet_path_or_version(folder: Path, other: bytes) -> None:
    with pytest.raises(SealedError):
        unseal(folder, seal(folder, content(100)), of=other)


def test_chunks_cannot_be_moved_doubled_dropped_or_added(folder: Path) -> None:
    first, second, third, last = chunks(seal(folder, content(3 * CHUNK + 9)))
    for parts in (
        [second, first, third, last],
        [first, third, second, last],
        [first, first, second, third, last],
        [first, second, second, third, last],
        [first, second, third, last, last],
        [first, third, last],
        [second, third, last],
        [first, second, last],
        [first, second, third],
        [first, second, third, last[:-1]],
        [first, second, third, last + b"\0"],
        [last],
        [first],
        [],
    ):
        refused(folder, parts)
    assert unseal(folder, MAGIC + first + second + third + last) == content(3 * CHUNK + 9)


def test_nor_mixed_with_those_of_another_file_under_the_same_key(folder: Path) -> None:
    one = chunks(seal(folder, content(2 * CHUNK)))
    other = chunks(seal(folder, bytes(2 * CHUNK), context("plant-a", "models/plant-a/other-1.0.0.bundle", "1.0.0")))
    refused(folder, [one[0], other[1]])


@given(st.data())
def test_a_changed_or_cut_file_is_refused_wherever_that_is(folder: Path, data: st.DataObject) -> None:
    made = seal(folder, content(CHUNK + 50))
    at = data.draw(st.integers(0, len(made) - 1))
    bit = data.draw(st.integers(0, 7))
    with pytest.raises(SealedError):
        unseal(folder, made[:at])
    with pytest.raises(SealedError):
        unseal(folder, made[:at] + bytes([made[at] ^ (1 << bit)]) + made[at + 1 :])


def test_memory_is_that_of_a_few_chunks(folder: Path) -> None:
    made = seal(folder, bytes(64 * CHUNK))
    (folder / "given").write_bytes(made)
    tracemalloc.start()
    sealed.unseal(folder / "given", folder / "large", KEY, OF)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * CHUNK
    assert (folder / "large").stat().st_size == 64 * CHUNK


def test_a_folder_that_refuses_is_not_the_files_fault(folder: Path) -> None:
    (folder / "given").write_bytes(seal(folder, b"x"))
    with pytest.raises(StorageError):
        sealed.unseal(folder / "given", folder / "nowhere" / "opened", KEY, OF)
